// Package network measures the pod network on real components and prints each
// figure beside what it has to be measured against, in the same run: netbridge
// beside a hand-made VXLAN, which is the limit, and flannel where bin/flanneld is
// there; and what an agent takes with many peers.
//
// Nothing runs unless benchmarks are asked for (make bench-network). All of it
// stands in a network namespace of its own, with its machines as others. The
// contenders take turns in each round, and what is compared is compared within a
// round: what else the machine does meets all of them.
package network
