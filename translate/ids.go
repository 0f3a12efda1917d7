package translate

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// JobID is the ID of a pod's job: k8s-<cluster>-<pod UID>. It has no dots,
// which Variable paths do not take, and none is a prefix of another.
func JobID(cluster string, uid types.UID) string {
	return fmt.Sprintf("k8s-%s-%s", cluster, uid)
}

// JobIDPrefix is common to the jobs of a cluster's pods and to no others.
func JobIDPrefix(cluster string) string { return "k8s-" + cluster + "-" }

// PodUID is the inverse of [JobID]; ok is false for jobs of others, those of
// other clusters included.
func PodUID(cluster, jobID string) (uid types.UID, ok bool) {
	rest, ok := strings.CutPrefix(jobID, JobIDPrefix(cluster))
	return types.UID(rest), ok && rest != ""
}

// CompanionID is the ID of a job that runs beside a pod's own, on the same
// client: k8sx-<cluster>-<pod UID>-<name>.
func CompanionID(cluster string, uid types.UID, name string) string {
	return CompanionPrefix(cluster, uid) + name
}

// CompanionPrefix is common to the companion jobs of a pod and to no others.
func CompanionPrefix(cluster string, uid types.UID) string {
	return companionPrefix(cluster) + string(uid) + "-"
}

func companionPrefix(cluster string) string { return "k8sx-" + cluster + "-" }

// JobIDPrefixes are those of all jobs of a cluster's pods, companions included,
// and of no others.
func JobIDPrefixes(cluster string) []string {
	return []string{JobIDPrefix(cluster), companionPrefix(cluster)}
}

// uidLength is how long the UIDs of the API server are (RFC 4122).
const uidLength = 36

// Owner is the inverse of [JobID] and [CompanionID]: companion is empty for the
// pod's own job. ok is false for jobs of others, those of other clusters
// included.
func Owner(cluster, jobID string) (uid types.UID, companion string, ok bool) {
	if uid, ok := PodUID(cluster, jobID); ok {
		return uid, "", true
	}
	rest, ok := strings.CutPrefix(jobID, companionPrefix(cluster))
	if !ok || len(rest) < uidLength+2 || rest[uidLength] != '-' {
		return "", "", false
	}
	return types.UID(rest[:uidLength]), rest[uidLength+1:], true
}

// TaskName is the task of a container. Nomad reserves "alloc".
func TaskName(container string) string {
	if container == "alloc" {
		return "alloc-"
	}
	return container
}

// VariablePath is where a job's projected data lies.
func VariablePath(jobID string) string { return "nomad/jobs/" + jobID }

// GatePath is the Variable that opens or holds a task; see [Result.ClosedGates].
func GatePath(jobID, task string) string {
	return "nomad/jobs/" + jobID + "/" + GroupName + "/" + task
}

// The items of a gate Variable. A task that started open is held while its
// gate exists with GateHold; one that started closed waits until its gate
// exists with GateOpen, and is held again by GateHold.
const (
	GateItem = "gate"
	GateOpen = "open"
	GateHold = "hold"
)
