// Package accelerator finds out which of Nomad's clients run guests by KVM.
//
// That a client has /dev/kvm says little: it may not be allowed to qemu, or, on a
// machine that is virtual itself, let guests hang. So each client that has qemu is
// tried once, by a Nomad job whose guest does nothing but switch itself off. What
// comes of it is kept as the client's own metadata ([translate.AcceleratorMeta]),
// where VMs' jobs read it, operators see and set it, and nothing is lost when
// nomad-kubelet restarts.
package accelerator
