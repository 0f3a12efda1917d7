// Package overlaytest is the host, the peers and the goals that the tests of all
// backends have: what one of them is asked to do, another has to do as well.
package overlaytest
