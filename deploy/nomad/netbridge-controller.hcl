# What the netbridge controller needs of Nomad.

# Which clients are down, and which it has forgotten.
node {
  policy = "read"
}

# Whether they may still run something. What it may not see would look gone, so this
# names all namespaces.
namespace "*" {
  capabilities = ["list-jobs", "read-job"]
}
