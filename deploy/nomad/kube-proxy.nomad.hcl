# The cluster's own Service proxy on every Nomad client of a pool, so that pods in
# the pod network reach ClusterIPs (docs/networking.md). It asks the API server with
# the token of a service account that has the role system:node-proxier:
#
#   kubectl -n kube-system create serviceaccount nomad-kube-proxy
#   kubectl create clusterrolebinding nomad-kube-proxy \
#     --clusterrole=system:node-proxier --serviceaccount=kube-system:nomad-kube-proxy
#   nomad var put nomad/jobs/kube-proxy \
#     server=https://API-SERVER:6443 \
#     ca="$(kubectl get configmap kube-root-ca.crt -o jsonpath='{.data.ca\.crt}' | base64 -w0)" \
#     token="$(kubectl -n kube-system create token nomad-kube-proxy --duration=8760h)"
#   nomad job run -var node_pool=default -var virtual_node=nomad kube-proxy.nomad.hcl

variable "node_pool" {
  type    = string
  default = "default"
}

# The virtual node whose pods run here: its pods are the local ones for
# internalTrafficPolicy.
variable "virtual_node" {
  type    = string
  default = "nomad"
}

variable "image" {
  type    = string
  default = "registry.k8s.io/kube-proxy:v1.35.4"
}

job "kube-proxy" {
  type      = "system"
  node_pool = var.node_pool
  priority  = 90

  group "kube-proxy" {
    network {
      mode = "host"
    }

    task "kube-proxy" {
      driver = "docker"

      config {
        image        = var.image
        network_mode = "host"
        # The docker plugin must allow it: allow_caps = ["net_admin", ...].
        cap_add = ["net_admin"]
        command = "/usr/local/bin/kube-proxy"
        args = [
          "--proxy-mode=nftables",
          "--kubeconfig=${NOMAD_SECRETS_DIR}/kubeconfig",
          "--hostname-override=${var.virtual_node}",
          # Without the right to write the kernel's settings; the client's own hold.
          "--conntrack-max-per-core=0",
          "--conntrack-min=0",
          "--conntrack-tcp-timeout-established=0",
          "--conntrack-tcp-timeout-close-wait=0",
        ]
      }

      template {
        destination = "secrets/kubeconfig"
        perms       = "0400"
        change_mode = "restart"
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/kube-proxy" }}
          apiVersion: v1
          kind: Config
          clusters: [{name: c, cluster: {server: "{{ .server }}", certificate-authority-data: "{{ .ca }}"}}]
          users: [{name: u, user: {token: "{{ .token }}"}}]
          contexts: [{name: d, context: {cluster: c, user: u}}]
          current-context: d
          {{ end }}
        EOT
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
