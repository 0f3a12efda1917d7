// Package logindex is the form of the index of a container's log: when which
// bytes of stdout and stderr were written, and where a run of the container
// begins. Nomad's own log files tell none of it.
//
// The docker proxy writes the index beside the task, on the client
// (nomadprovider/dockerproxy); the kubelet API reads it by Nomad's file API
// (nomadprovider/kubelet). The bytes themselves stay in Nomad's files.
//
// # Form
//
// A run of a container, from its start to its end, has one segment or more. A
// segment is a file in the task's directory, .k8s-log.<start>.<number>: the start
// of the container in Unix nanoseconds, by which runs are told apart and
// ordered, and a number from 0 on. It begins with a line of JSON, its [Header],
// which says where in Nomad's files the segment's first bytes are. Records
// follow, each of some bytes of one stream, in the order in which they were
// written, or a mark at the segment's end.
//
// Nomad turns its files at line ends near their limit (client/logmon/logging/
// rotator.go), so their sizes differ, and those that are gone cannot be added up.
// Hence a new segment begins whenever Nomad turned a file, and its header is the
// sum.
//
// A record is three unsigned varints: its bytes, shifted by three, with its kind
// and whether it goes on with a line; the microseconds since the record before,
// or since the header's time; and how many lines begin in it. A mark has no
// third.
package logindex
