# What a netbridge agent needs of Consul, for the fabric "default".

# It reads the settings, and all claims and records: a list that is cut by rights
# is never taken for the whole.
key_prefix "netbridge/v1/default/" {
  policy = "read"
}

# It claims its blocks and its overlay address, and publishes its record.
key_prefix "netbridge/v1/default/blocks/" {
  policy = "write"
}

key_prefix "netbridge/v1/default/hosts/" {
  policy = "write"
}

# "nodes/k8s/" and "seen/k8s/" for the agents of Kubernetes nodes.
key_prefix "netbridge/v1/default/nodes/nomad/" {
  policy = "write"
}

# It says every five minutes that it lives.
key_prefix "netbridge/v1/default/seen/nomad/" {
  policy = "write"
}
