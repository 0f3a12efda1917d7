// Package kubernetes holds the manifests that nomad-kubelet needs in a cluster,
// as files an operator applies and as text that the development cluster uses.
package kubernetes

import _ "embed"

// The files of this directory that a process outside the cluster needs, too.
var (
	//go:embed serviceaccount.yaml
	ServiceAccount string
	//go:embed rbac.yaml
	RBAC string
	//go:embed storage.yaml
	Storage string
)
