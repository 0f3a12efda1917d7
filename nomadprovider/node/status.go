package node

import (
	"fmt"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// ConditionNomadReachable is the Node condition that says at once, without
// the patience of Ready, whether Nomad answers.
const ConditionNomadReachable corev1.NodeConditionType = translate.Domain + "/NomadReachable"

// statusInput is all that a Node's status is made of.
type statusInput struct {
	now         time.Time
	name        string
	nodeIP      string
	port        int32
	version     string
	pool        string
	sum         poolSummary
	verdict     verdict
	reachable   bool
	unreachable string // why
	previous    []corev1.NodeCondition
	network     translate.NetworkMode
}

// nodeStatus makes the whole status: Virtual Kubelet replaces what it had.
func nodeStatus(in statusInput) corev1.NodeStatus {
	s := corev1.NodeStatus{
		Capacity:    in.sum.capacity.DeepCopy(),
		Allocatable: in.sum.allocatable.DeepCopy(),
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: in.nodeIP},
			{Type: corev1.NodeHostName, Address: in.name},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: in.port}},
		NodeInfo:        nodeInfo(in),
	}
	s.Conditions = conditions(in)
	return s
}

func nodeInfo(in statusInput) corev1.NodeSystemInfo {
	c := in.sum.sample
	return corev1.NodeSystemInfo{
		MachineID: in.name, SystemUUID: in.name, BootID: in.name,
		KernelVersion:           orDefault(c.Kernel, "unknown"),
		OSImage:                 fmt.Sprintf("Nomad node pool %s (%d clients, %s)", in.pool, in.sum.members, orDefault(c.OSImage, "unknown")),
		ContainerRuntimeVersion: "nomad://" + orDefault(c.NomadVersion, "unknown"),
		KubeletVersion:          in.version,
		OperatingSystem:         orDefault(c.OS, "linux"),
		Architecture:            orDefault(in.sum.arch, runtime.GOARCH),
	}
}

// conditions are those a kubelet sets, and NomadReachable. Nomad's clients
// report no pressure of memory, disk or PIDs: their scheduler keeps within
// what they have.
func conditions(in statusInput) []corev1.NodeCondition {
	cond := func(t corev1.NodeConditionType, ok bool, reason, message string) corev1.NodeCondition {
		status := corev1.ConditionFalse
		if ok {
			status = corev1.ConditionTrue
		}
		return corev1.NodeCondition{
			Type: t, Status: status, Reason: reason, Message: message,
			LastHeartbeatTime:  metav1.NewTime(in.now),
			LastTransitionTime: transition(in.previous, t, status, in.now),
		}
	}
	reach, reachMessage := ReasonNomadReachable, "Nomad answers and has a leader"
	if !in.reachable {
		reach, reachMessage = ReasonNomadUnreachable, in.unreachable
	}
	return []corev1.NodeCondition{
		cond(corev1.NodeReady, in.verdict.ready, in.verdict.reason, in.verdict.message),
		cond(corev1.NodeMemoryPressure, false, "KubeletHasSufficientMemory", "Nomad places pods only where memory is free"),
		cond(corev1.NodeDiskPressure, false, "KubeletHasNoDiskPressure", "Nomad places pods only where disk is free"),
		cond(corev1.NodePIDPressure, false, "KubeletHasSufficientPID", "the Nomad clients' business"),
		cond(corev1.NodeNetworkUnavailable, false, "NomadNetwork", "pods use Nomad's network mode "+string(in.network)),
		cond(ConditionNomadReachable, in.reachable, reach, reachMessage),
	}
}

// transition keeps the time of the last change of status.
func transition(previous []corev1.NodeCondition, t corev1.NodeConditionType, status corev1.ConditionStatus, now time.Time) metav1.Time {
	for _, p := range previous {
		if p.Type == t && p.Status == status && !p.LastTransitionTime.IsZero() {
			return p.LastTransitionTime
		}
	}
	return metav1.NewTime(now)
}

func orDefault(v, to string) string {
	if v == "" {
		return to
	}
	return v
}
