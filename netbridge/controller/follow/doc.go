// Package follow keeps up with one question to Consul by blocking queries.
package follow
