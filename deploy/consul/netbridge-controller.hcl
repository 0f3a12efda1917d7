# What the netbridge controller needs of Consul, for the fabric "default".

# It reads all claims and records, and when each agent last said that it lives.
key_prefix "netbridge/v1/default/" {
  policy = "read"
}

# It releases what nodes that are gone had, and takes their records away.
key_prefix "netbridge/v1/default/blocks/" {
  policy = "write"
}

key_prefix "netbridge/v1/default/hosts/" {
  policy = "write"
}

key_prefix "netbridge/v1/default/nodes/k8s/" {
  policy = "write"
}

key_prefix "netbridge/v1/default/nodes/nomad/" {
  policy = "write"
}

key_prefix "netbridge/v1/default/seen/" {
  policy = "write"
}

# It has a node of the catalog's own, for the instances that it exports.
node "k8s-default" {
  policy = "write"
}

# Any name may be exported. Narrow this to the names that are, where others must
# not be: only those are then written, and the rest is told in the log.
service_prefix "" {
  policy = "write"
}

# It imports instances on any node. An answer that is cut by rights is never taken
# for the whole.
node_prefix "" {
  policy = "read"
}
