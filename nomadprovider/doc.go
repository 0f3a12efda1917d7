// Package nomadprovider puts the rooms of the Kubernetes side together: it
// stands for election, and while it leads it runs the virtual nodes, their
// kubelet APIs and the pods of all of them.
package nomadprovider
