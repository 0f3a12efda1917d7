// Package vxlan is the backend that uses the kernel's VXLAN: one device, and for
// each peer a neighbour, a forwarding entry and a route to each of its ranges, all
// static. Nothing is learned or asked for, so nothing stops when the agent does.
//
// Its routes carry protocol number 76, by which they are told from others'.
package vxlan
