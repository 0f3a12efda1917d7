// Package userspace carries a WireGuard device where the kernel cannot: the
// WireGuard project's own implementation, with a tun device, in a process that
// does nothing else and outlives the agent. Whoever configures it, such as
// netbridge's agent or wg(8), does so by its socket in /var/run/wireguard. With
// the process go device, keys and sessions.
package userspace
