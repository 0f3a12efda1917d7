// Package companion is what the small program beside a pod does, where a
// feature needs code on the pod's own client. Only pods that need one get one.
package companion
