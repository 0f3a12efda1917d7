# What nomad-kubelet may do in Nomad, and no more:
#
#   nomad acl policy apply nomad-kubelet policy.hcl
#   nomad acl token create -name nomad-kubelet -policy nomad-kubelet
#
# Write one namespace block for each Nomad namespace that the configuration
# names.

namespace "default" {
  capabilities = [
    # See pods' jobs and allocations, at start and after a reconnect, follow the
    # event stream, and read what allocations use.
    "list-jobs",
    "read-job",
    # One job for each pod; stopped and purged when the pod is gone.
    "submit-job",
    # kubectl logs.
    "read-logs",
    # Termination messages, and files for kubectl cp.
    "read-fs",
    # kubectl exec, attach and port-forward, probes and hooks that are commands,
    # and what the docker proxy tells of containers.
    "alloc-exec",
    # Restart or signal one container of a pod.
    "alloc-lifecycle",
    # Volumes of claims: one dynamic host volume for each, deleted with it.
    "host-volume-create",
    "host-volume-read",
    "host-volume-delete",
  ]

  variables {
    # Contents of ConfigMaps, Secrets and service-account tokens, and the gates
    # that order containers. The pattern ends in no slash so that it covers a
    # job's own path and those below it.
    path "nomad/jobs/k8s-*" {
      capabilities = ["list", "read", "write", "destroy"]
    }
    # The same for jobs beside a pod's own: ephemeral containers.
    path "nomad/jobs/k8sx-*" {
      capabilities = ["list", "read", "write", "destroy"]
    }
  }
}

# Jobs of pods mount the volumes of their claims. Add the names of others that
# PersistentVolumes name.
host_volume "pvc-*" {
  policy = "write"
}

# Capacity, health, addresses and load of clients. With "write" nomad-kubelet
# finds out which clients run VMs by KVM, and keeps that in their metadata
# (docs/vms.md); it would then also be allowed to drain clients.
node {
  policy = "read"
}

# Tell a node pool that does not exist from one that is empty.
node_pool "*" {
  policy = "read"
}

# Doctor reads agents' settings; without it that part says "unknown".
agent {
  policy = "read"
}

# Whether the scheduler honours memory_max. Can be left out when the
# configuration says memoryOversubscription itself.
operator {
  policy = "read"
}
