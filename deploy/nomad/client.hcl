# Settings that pods need on every Nomad client of a virtual node's pool.
# Addresses, data_dir and the servers to join are yours; copy the rest.
# `nomad-kubelet doctor` tells which of these a running client lacks.

client {
  enabled = true

  # Pods ask for CPU in thousandths of a core. Nomad counts MHz, which differ
  # from machine to machine. With 1000 * cores, 1 MHz is one millicore and
  # clients of different clock speeds count alike; without it nomad-kubelet
  # converts by the speed that the client reports. Uncomment and fill in:
  # cpu_total_compute = 8000 # 8 cores

  # Nomad cuts a task's kill_timeout to this (30 s unless told otherwise), and
  # with it a pod's terminationGracePeriodSeconds.
  max_kill_timeout = "1h"

  # Above this number of allocations, finished ones included, the client
  # removes finished ones at once, and the logs of completed pods with them.
  # 50 unless told otherwise; a node carries more pods than that.
  gc_max_allocs = 1000

  # The same removal starts when disk or inodes run full. Nomad's 80 and 70 per
  # cent are reached by many healthy machines.
  gc_disk_usage_threshold  = 90
  gc_inode_usage_threshold = 90

  # Bridge networking runs the CNI plugins bridge, firewall, host-local,
  # loopback and portmap from here. Debian keeps them in /usr/lib/cni.
  cni_path = "/opt/cni/bin"

  # A pod reaches itself through its own host port.
  bridge_network_hairpin_mode = true

  template {
    # ConfigMaps, Secrets and gates are templates over Nomad Variables. When
    # servers cannot be reached, the client's restart renders them again, and
    # gives up after 12 tries: about five minutes later it kills pods that were
    # running well. 0 means that it never gives up.
    nomad_retry {
      attempts    = 0
      backoff     = "250ms"
      max_backoff = "5s"
    }

    # A container that is not to run again is held by a Variable. A server that
    # has just started, or lags behind, does not know of it, and templates ask any
    # server however far behind it is. 0 asks the leader.
    max_stale = "0s"
  }
}

telemetry {
  # What tasks use, for kubectl top and autoscalers. Nomad looks only if it
  # publishes it, too, as metrics of the agent. Without this nothing is told of VMs,
  # nor of containers on a client without the docker proxy.
  publish_allocation_metrics = true

  # Once a second, Nomad's own choice, keeps the Docker engine busy: each look at a
  # container takes it a second.
  collection_interval = "10s"
}

limits {
  # nomad-kubelet holds one connection for each followed log, exec session and
  # watch, all from one address; Nomad refuses more than 100. 0 is no limit.
  http_max_conns_per_client = 0
}

plugin "docker" {
  config {
    # Volumes of pods are directories of the allocation, bound into the
    # container, and so is the cache of VM images; Nomad refuses that unless volumes
    # are enabled. Which host paths a pod may name is decided by nomad-kubelet's
    # hostAccess.
    volumes {
      enabled = true
    }

    # What securityContext.capabilities.add may name. Docker's default set is
    # always needed, for containers that drop and add. Extend it only with what
    # hostAccess.capabilities allows, too. Where guests of VMs have their pods'
    # addresses (config.network: tap in a row of virtualNodes[].runtimes), add
    # "net_admin" for their companions.
    allow_caps = [
      "audit_write", "chown", "dac_override", "fowner", "fsetid", "kill",
      "mknod", "net_bind_service", "net_raw", "setfcap", "setgid", "setpcap",
      "setuid", "sys_chroot",
    ]

    # Privileged pods are root on this machine. Open this together with
    # hostAccess.privileged, or not at all.
    allow_privileged = false

    # Docker's own copy of a container's log, from which Nomad reads. A reader that
    # is more than such a file behind misses the rest of it (Docker 20.10). With
    # 2 MB, Nomad's own choice, two thirds of a burst of 16 MB were lost.
    logging {
      type = "json-file"
      config {
        max-file = "2"
        max-size = "20m"
      }
    }

    gc {
      # An image is removed this long after its last container. Three minutes,
      # Nomad's own choice, would pull it again for every CronJob.
      image_delay = "24h"
    }
  }
}
