// Package consultest runs a real Consul server for tests, in a network namespace
// of the test's, reachable through a Unix socket from everywhere.
package consultest
