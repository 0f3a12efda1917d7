// Package netlab makes network namespaces for tests. They have no name: a
// namespace lives as long as its thread, its file and its processes, so nothing
// of it is left on the machine however the test process ends, and the machine's
// own devices, routes and rules are never touched.
package netlab
