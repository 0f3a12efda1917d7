// Package wireguard is the backend that encrypts: one WireGuard device, and for
// each peer its public key, its endpoint and the ranges that it may send from, set
// by wgctrl, beside the routes that all backends have. It takes the kernel's
// device where the kernel has one, and else adopts the one that a process of its
// own carries ([userspace]), by its socket in /var/run/wireguard.
//
// A peer that is as it should be is not touched: its session outlives the agent.
package wireguard
