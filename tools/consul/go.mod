module github.com/nomad-kubelet/nomad-kubelet/tools/consul

go 1.26

require github.com/hashicorp/consul v1.21.0

// A module's replace directives do not reach those who import it, so Consul's own is repeated here.
replace github.com/hashicorp/consul-awsauth => github.com/hashicorp/consul-awsauth v0.0.0-20250825122907-9e35fe9ded3a
