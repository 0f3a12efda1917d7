# Settings that pods need on every Nomad server. Addresses, data_dir and
# bootstrap_expect are yours; copy the rest.

server {
  enabled = true

  # nomad-kubelet follows Nomad's event stream. A reader that falls behind the
  # buffer is cut off and has to list everything again; the default of 100 is
  # gone within a second when pods start in numbers.
  event_buffer_size = 20000

  # A completed pod stays readable in Kubernetes, and `kubectl logs` of it works
  # until Nomad forgets its job. Four hours unless told otherwise.
  job_gc_threshold = "24h"

  default_scheduler_config {
    # Lets a pod's memory limit exceed its request (memory_max), and gives a VM
    # room for qemu itself. It is read when the cluster is first set up; later:
    # nomad operator scheduler set-config -memory-oversubscription=true
    memory_oversubscription_enabled = true

    # A pod that gives way to one of higher priority is Kubernetes' decision;
    # Nomad evicting one behind its back would look like a failure.
    preemption_config {
      system_scheduler_enabled   = false
      sysbatch_scheduler_enabled = false
      batch_scheduler_enabled    = false
      service_scheduler_enabled  = false
    }
  }
}

limits {
  # nomad-kubelet holds one connection for each followed log, exec session and
  # watch, all from one address; Nomad refuses more than 100. 0 is no limit.
  http_max_conns_per_client = 0

  # The same when it talks to an agent that passes those on to this server.
  rpc_max_conns_per_client = 1000
}
