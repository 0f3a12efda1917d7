# netbridge's agent on every Nomad client of a pool (docs/networking.md). It runs as
# root on the machine itself (raw_exec must be enabled), since it writes the machine's
# routes, rules and CNI network. The machine needs nft 1.0.1 or later. What it sets up
# stays when the job is stopped, updated or restarted.
#
# The programs netbridge and netbridge-ipam lie in program_dir on each client, or come
# with the archive at source. The first time, send each client's agent one SIGHUP when
# the agent has written its CNI network (its log asks for it).
#
# With ACLs, tokens with deploy/consul/netbridge-agent.hcl and deploy/nomad/netbridge-agent.hcl:
#
#   nomad var put nomad/jobs/netbridge consul_token=... nomad_token=...
#   nomad job run -var consul_address=http://127.0.0.1:8500 netbridge.nomad.hcl

variable "node_pool" {
  type    = string
  default = "default"
}

variable "fabric" {
  type    = string
  default = "default"
}

variable "consul_address" {
  type    = string
  default = "http://127.0.0.1:8500"
}

# The Nomad agent of the same machine.
variable "nomad_address" {
  type    = string
  default = "http://127.0.0.1:4646"
}

variable "program_dir" {
  type    = string
  default = "/usr/local/bin"
}

# An archive with the two programs, in any form that go-getter knows; empty: they are
# in program_dir.
variable "source" {
  type    = string
  default = ""
}

# One of the client's cni_path, where netbridge-ipam is put.
variable "cni_bin_dir" {
  type    = string
  default = "/opt/cni/bin"
}

# The client's cni_config_dir.
variable "cni_config_dir" {
  type    = string
  default = "/opt/cni/config"
}

# The name server of the pods; empty: there is none.
variable "dns_address" {
  type    = string
  default = ""
}

# Outlives the job: who has which address.
variable "state_dir" {
  type    = string
  default = "/var/lib/netbridge"
}

variable "socket" {
  type    = string
  default = "/run/netbridge/agent.sock"
}

job "netbridge" {
  type      = "system"
  node_pool = var.node_pool
  # Before whatever waits for the network.
  priority = 95

  # One client after the other; an agent that is replaced costs no packet.
  update {
    max_parallel = 1
    stagger      = "10s"
  }

  group "netbridge" {
    restart {
      # For ever: without an agent nobody follows what changes.
      attempts = 10
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    # Nomad finds the plugin when it sets up the first allocation, so that it is there
    # before the agent makes the client known as ready.
    task "plugin" {
      driver = "raw_exec"

      lifecycle {
        hook = "prestart"
      }

      dynamic "artifact" {
        for_each = var.source == "" ? [] : [var.source]
        content {
          source      = artifact.value
          destination = "local"
        }
      }

      config {
        command = "/bin/sh"
        # Replaced as a whole: Nomad may be starting it.
        args = ["-ec", <<-EOT
          from=${var.source == "" ? var.program_dir : "$${NOMAD_TASK_DIR}"}/netbridge-ipam to=${var.cni_bin_dir}/netbridge-ipam
          cmp -s "$from" "$to" && exit 0
          mkdir -p ${var.cni_bin_dir}
          cp "$from" "$to.new" && chmod 0755 "$to.new" && mv "$to.new" "$to"
        EOT
        ]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "agent" {
      driver = "raw_exec"

      dynamic "artifact" {
        for_each = var.source == "" ? [] : [var.source]
        content {
          source      = artifact.value
          destination = "local"
        }
      }

      config {
        command = var.source == "" ? "${var.program_dir}/netbridge" : "local/netbridge"
        args    = ["agent", "--config=${NOMAD_TASK_DIR}/agent.yaml"]
      }

      template {
        destination = "local/agent.yaml"
        change_mode = "restart"
        data        = <<-EOT
          fabric: ${var.fabric}
          node:
            kind: nomad
          consul:
            address: ${var.consul_address}
          {{- if nomadVarExists "nomad/jobs/netbridge" }}
            tokenFile: {{ env "NOMAD_SECRETS_DIR" }}/consul-token
          {{- end }}
          nomad:
            address: ${var.nomad_address}
          {{- if nomadVarExists "nomad/jobs/netbridge" }}
            tokenFile: {{ env "NOMAD_SECRETS_DIR" }}/nomad-token
          {{- end }}
          cni:
            configDir: ${var.cni_config_dir}
          %{if var.dns_address != ""}dns: {address: ${var.dns_address}}%{endif}
          stateDir: ${var.state_dir}
          socket: ${var.socket}
        EOT
      }

      template {
        destination = "secrets/consul-token"
        perms       = "0400"
        change_mode = "restart"
        data        = <<-EOT
          {{- if nomadVarExists "nomad/jobs/netbridge" }}{{ with nomadVar "nomad/jobs/netbridge" }}{{ .consul_token }}{{ end }}{{ end -}}
        EOT
      }

      template {
        destination = "secrets/nomad-token"
        perms       = "0400"
        change_mode = "restart"
        data        = <<-EOT
          {{- if nomadVarExists "nomad/jobs/netbridge" }}{{ with nomadVar "nomad/jobs/netbridge" }}{{ .nomad_token }}{{ end }}{{ end -}}
        EOT
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
