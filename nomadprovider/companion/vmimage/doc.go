// Package vmimage brings the disk images of VMs to a Nomad client, from a web
// server or out of a container image, and keeps them there for the next VM.
//
// It is run by tasks of their own before a VM's, since an image may take minutes:
// [Try] is one try of such a task. What it leaves in the allocation's directory is
// the image, or a symbolic link to the client's one in its cache.
//
// # Cache
//
// A [Cache] is a directory of a client, which tasks of many pods share without
// knowing of each other:
//
//	images/sha256-<hex>  the images by their content, never changed
//	names/<hex>          which image was behind a name last, as JSON; the file is
//	                     named by the name's SHA-256
//	partial/<random>     what is being written, by whoever holds its lock
//	locks/<00..ff>       is held for a name (by the beginning of its SHA-256)
//	                     while it is looked up or fetched
//	locks/evict          is held by the one who makes room
//
// All locks are flock's, so that none outlives its process. Whoever uses an image
// holds a shared lock on it: an image is evicted only if nobody does, and if it was
// not asked for within the last hour, which covers the time between a task that
// fetches and the companion that holds for the pod's life.
package vmimage
