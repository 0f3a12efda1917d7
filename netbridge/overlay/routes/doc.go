// Package routes is what all backends do in the same way, whatever carries their
// packets: the overlay's routes in the main table, the device's address and MTU,
// and listening for what others do to them.
//
// The routes carry protocol number 76, by which they are told from others'.
package routes
