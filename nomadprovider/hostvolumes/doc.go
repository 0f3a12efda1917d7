// Package hostvolumes provisions PersistentVolumes from Nomad's dynamic host volumes
// (Nomad 1.10): for each claim of a StorageClass whose provisioner is
// [translate.DriverHostVolume] it makes one on a client of the virtual node that the
// scheduler has selected, and deletes it with the PersistentVolume. What is watched
// and retried is the business of Kubernetes' library for external provisioners.
package hostvolumes
