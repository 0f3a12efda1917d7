// Package projection brings ConfigMaps, Secrets, service-account tokens and
// downward API fields to the pods that name them.
//
// It watches exactly the objects that pods of our virtual nodes name, each
// once, however many pods share it (as the kubelet's watch-based manager
// does), and it alone writes the Variable nomad/jobs/<job> that a pod's
// templates read. Values live nowhere else: not in the job, not in a log, not
// in an error.
package projection
