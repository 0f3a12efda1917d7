// Package config is the configuration file of nomad-kubelet run: its shape,
// its defaults, and the errors that a wrong one gets. Unknown keys are errors.
package config
