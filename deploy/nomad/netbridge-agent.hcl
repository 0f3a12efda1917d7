# What a netbridge agent needs of Nomad.

# It asks the agent beside it for the client's node ID.
agent {
  policy = "read"
}

# It sees whether the client knows the network, and marks the client as ready.
node {
  policy = "write"
}

# It frees addresses whose allocations are gone. Those of a namespace that it may
# not read would look gone.
namespace "*" {
  capabilities = ["list-jobs", "read-job"]
}
