// Package logging makes the one hclog logger of a process, and bends klog's
// and Virtual Kubelet's loggers into it, so that a line has one shape
// whichever library wrote it.
package logging
