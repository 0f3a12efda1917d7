module github.com/nomad-kubelet/nomad-kubelet/tools/nomad

go 1.26

require github.com/hashicorp/nomad v1.11.3

// A module's replace directives do not reach those who import it, so Nomad's own are repeated here.
replace (
	github.com/Microsoft/go-winio => github.com/endocrimes/go-winio v0.4.13-0.20190628114223-fb47a8b41948
	github.com/hashicorp/hcl => github.com/hashicorp/hcl v1.0.1-nomad-1
	github.com/hashicorp/nomad/api => github.com/hashicorp/nomad/api v0.0.0-20260907080526-08ef8f3d26da
)
