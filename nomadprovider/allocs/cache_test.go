package allocs

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func TestList(t *testing.T) {
	n := newNomad(t)
	n.pageSize = 2
	for i := range 5 {
		n.jobs = append(n.jobs, jobStub(id(fmt.Sprint("u", i)), 10))
	}
	// Those of others, whatever Nomad's filter let through.
	n.jobs = append(n.jobs, jobStub("web", 10), jobStub("k8s-c2-x", 10), jobStub("k8s-c1-", 10))
	n.allocs = []*api.AllocationListStub{
		allocStub(id("u0"), "late", 60, "pending"), allocStub(id("u0"), "early", 50, "complete"),
		allocStub(id("u1"), "runs", 50, "running"), allocStub("web", "other", 50, "running"), allocStub(id("u2"), "collected", 50, "running"),
	}
	n.infos["runs"] = &api.Allocation{ID: "runs", JobID: id("u1"), ClientStatus: "running", CreateIndex: 50, ModifyIndex: 50, NetworkStatus: &api.AllocNetworkStatus{Address: "10.0.0.1"}}
	n.infos["other"] = &api.Allocation{ID: "other", JobID: "web", ClientStatus: "running", CreateIndex: 50}
	n.evals[id("u3")] = []*api.Evaluation{
		{ModifyIndex: 8, FailedTGAllocs: map[string]*api.AllocationMetric{translate.GroupName: {NodesEvaluated: 2}}},
		{ModifyIndex: 9, FailedTGAllocs: map[string]*api.AllocationMetric{translate.GroupName: {NodesEvaluated: 4}}},
	}
	v := watch(t, n)
	v.told("u0", "u1", "u2", "u3", "u4")
	v.silent()
	if got := v.UIDs(); len(got) != 5 {
		t.Errorf("pods %v", got)
	}
	e := v.entry("u0")
	if len(e.Allocs) != 2 || e.Allocs[0].ID != "early" || e.Allocs[1].ID != "late" || e.Job.Name != "ns/"+id("u0") || e.Job.Namespace != "default" {
		t.Errorf("%+v", e)
	}
	if a := v.entry("u1").Allocs[0]; a.NetworkStatus == nil || a.NetworkStatus.Address != "10.0.0.1" {
		t.Errorf("the running allocation has no network status: %+v", a)
	}
	if a := v.entry("u2").Allocs[0]; a.ID != "collected" {
		t.Errorf("%+v", a)
	}
	if got := v.entry("u3").Unplaced; got != "4 clients evaluated, none fits" {
		t.Errorf("unplaced %q", got)
	}
	if got := v.entry("u4").Unplaced; got != "" {
		t.Errorf("unplaced %q", got)
	}
	if err := v.Current(); err != nil {
		t.Error(err)
	}
	// An entry is a copy.
	e.Allocs[0] = nil
	if v.entry("u0").Allocs[0] == nil {
		t.Error("the caller's copy is the cache's")
	}
}

func TestEvents(t *testing.T) {
	n := newNomad(t)
	v := watch(t, n)
	n.sendJob("web", 101, false, false)
	n.sendJob("k8s-c2-x", 101, false, false)
	n.sendAlloc("web", "x", 102, "running")
	n.sendAlloc(id("u"), "a", 102, "pending") // before its job: of one that is gone
	n.sendJob(id("u"), 103, false, false)
	v.told("u")
	if e := v.entry("u"); len(e.Allocs) != 0 || e.Job.ModifyIndex != 103 {
		t.Errorf("%+v", e)
	}
	n.sendAlloc(id("u"), "a", 110, "running")
	v.told("u")
	if a := v.entry("u").Allocs[0]; a.ClientStatus != "running" || a.Job != nil {
		t.Errorf("%+v", a)
	}
	// What is older than what is known, or the same, is no news.
	n.sendAlloc(id("u"), "a", 109, "pending")
	n.sendAlloc(id("u"), "a", 110, "running")
	n.sendJob(id("u"), 102, true, false)
	n.sendJob(id("u"), 111, true, false)
	v.told("u")
	v.silent()
	if e := v.entry("u"); e.Allocs[0].ClientStatus != "running" || !e.Job.Stopped {
		t.Errorf("%+v", e)
	}
	n.sendJob(id("u"), 120, true, true)
	v.told("u")
	v.gone("u")
	// Events that were on their way when the job was purged bring nothing back.
	n.sendAlloc(id("u"), "a", 121, "complete")
	n.send(api.TopicEvaluation, "e", 122, []string{id("u")}, map[string]any{"Evaluation": map[string]any{"JobID": id("u")}})
	n.sendJob(id("v"), 123, false, false)
	v.told("v")
	v.gone("u")
}

const companionUID = "6f1c7a52-3f0e-4f0b-9a51-0d2b1c3e4f51"

// The jobs beside a pod's own are part of its view, and go by themselves.
func TestCompanions(t *testing.T) {
	n := newNomad(t)
	one, two := translate.CompanionID(cluster, companionUID, "one"), translate.CompanionID(cluster, companionUID, "two")
	n.jobs = []*api.JobListStub{jobStub(id(companionUID), 10), jobStub(one, 10), jobStub("k8sx-c2-"+companionUID+"-one", 10)}
	n.allocs = []*api.AllocationListStub{allocStub(id(companionUID), "a", 50, "pending"), allocStub(one, "e1", 51, "running")}
	v := watch(t, n)
	v.told(companionUID)
	v.told(companionUID)
	e := v.entry(companionUID)
	if len(e.Allocs) != 1 || e.Allocs[0].ID != "a" || len(e.Companions) != 1 || e.Companions["one"].Allocs[0].ID != "e1" {
		t.Fatalf("%+v", e)
	}
	n.change(func() {
		if slices.Contains(n.requests, "/v1/allocation/e1") {
			t.Error("a companion's network was read")
		}
	})
	v.Registered(companionUID, Job{ID: two, Namespace: "default", CreateIndex: 40, ModifyIndex: 101})
	n.sendAlloc(two, "e2", 102, "running")
	v.told(companionUID)
	if e = v.entry(companionUID); e.Companions["two"].Allocs[0].ID != "e2" || len(e.Allocs) != 1 {
		t.Errorf("%+v", e)
	}
	n.sendJob(one, 103, true, true)
	v.told(companionUID)
	n.sendJob(id(companionUID), 104, true, true)
	v.told(companionUID)
	// The pod's own is gone; what is beside it is still seen.
	e, ok := v.Get(companionUID)
	if ok || len(e.Companions) != 1 || e.Companions["two"].Job.ID != two || !slices.Contains(v.UIDs(), companionUID) {
		t.Errorf("%v %+v", ok, e)
	}
	n.change(func() { n.index, n.jobs, n.allocs = 200, nil, nil })
	n.reconnect()
	v.told(companionUID)
	if e, _ := v.Get(companionUID); len(e.Companions) != 0 || len(v.UIDs()) != 0 {
		t.Errorf("%+v", e)
	}
}

func TestPurgeOfAFormerJob(t *testing.T) {
	n := newNomad(t)
	v := watch(t, n)
	v.Registered("u", Job{ID: id("u"), Namespace: "default", CreateIndex: 200, ModifyIndex: 200})
	v.silent() // whoever registered it knows
	n.sendJob(id("u"), 150, true, true)
	n.sendJob(id("v"), 201, false, false)
	v.told("v")
	if e := v.entry("u"); e.Job.CreateIndex != 200 {
		t.Errorf("%+v", e)
	}
	v.Registered("u", Job{ID: id("u"), Namespace: "default", ModifyIndex: 100})
	if e := v.entry("u"); e.Job.ModifyIndex != 200 {
		t.Errorf("an older registration won: %+v", e)
	}
}

func TestUnplaced(t *testing.T) {
	n := newNomad(t)
	v := watch(t, n)
	eval := func(index uint64, failed map[string]any) {
		n.send(api.TopicEvaluation, "e", index, []string{id("u")}, map[string]any{"Evaluation": map[string]any{"JobID": id("u"), "FailedTGAllocs": failed}})
	}
	n.sendJob(id("u"), 101, false, false)
	v.told("u")
	eval(102, map[string]any{"pod": map[string]any{"NodesEvaluated": 3}})
	v.told("u")
	if got := v.entry("u").Unplaced; got != "3 clients evaluated, none fits" {
		t.Errorf("unplaced %q", got)
	}
	eval(103, map[string]any{"pod": map[string]any{"NodesEvaluated": 3}}) // no news
	eval(104, nil)
	n.sendAlloc(id("u"), "a", 105, "running")
	v.told("u")
	if got := v.entry("u").Unplaced; got != "" {
		t.Errorf("a placed pod is unplaced: %q", got)
	}
	// While an allocation runs, an evaluation that finds no second place says nothing.
	eval(106, map[string]any{"pod": map[string]any{"NodesEvaluated": 3}})
	n.sendJob(id("w"), 107, false, false)
	v.told("w")
	if got := v.entry("u").Unplaced; got != "" {
		t.Errorf("a running pod is unplaced: %q", got)
	}
}

func TestBrokenEventIsSkipped(t *testing.T) {
	n := newNomad(t)
	v := watch(t, n)
	for _, topic := range []api.Topic{api.TopicJob, api.TopicAllocation, api.TopicEvaluation} {
		n.send(topic, id("u"), 101, []string{id("u")}, "not an object")
		n.send(topic, id("u"), 101, nil, map[string]any{})
	}
	n.sendJob(id("u"), 102, false, false)
	v.told("u")
}

func TestListsAgain(t *testing.T) {
	n := newNomad(t)
	n.jobs = []*api.JobListStub{jobStub(id("stays"), 10), jobStub(id("goes"), 10), jobStub(id("stops"), 10)}
	n.allocs = []*api.AllocationListStub{allocStub(id("stays"), "a", 50, "running")}
	n.infos["a"] = &api.Allocation{ID: "a", JobID: id("stays"), ClientStatus: "running", CreateIndex: 50, ModifyIndex: 50, NetworkStatus: &api.AllocNetworkStatus{Address: "10.0.0.1"}}
	v := watch(t, n)
	v.told("stays", "goes", "stops")
	v.Registered("new", Job{ID: id("new"), Namespace: "default", ModifyIndex: 1000})
	n.change(func() {
		n.index = 200
		n.jobs = []*api.JobListStub{jobStub(id("stays"), 10), jobStub(id("stops"), 150)}
		n.jobs[1].Stop = true
		n.allocs[0] = allocStub(id("stays"), "a", 50, "running")
		n.allocs[0].ModifyIndex = 160
		n.allocs[0].ClientStatus = "complete"
		n.requests = nil
	})
	n.reconnect()
	v.told("stays", "goes", "stops")
	v.gone("goes")
	if a := v.entry("stays").Allocs[0]; a.ClientStatus != "complete" || a.NetworkStatus == nil {
		t.Errorf("%+v", a)
	}
	if !v.entry("stops").Job.Stopped {
		t.Error("the stop was not seen")
	}
	// It was registered after the list was taken.
	v.entry("new")
	n.change(func() {
		if slices.Contains(n.requests, "/v1/allocation/a") {
			t.Error("what is known was read again")
		}
	})
	// The same list again is no news.
	n.reconnect()
	n.sendJob(id("mark"), 300, false, false)
	v.told("mark")
	v.silent()
}

func TestTroubleIsTold(t *testing.T) {
	n := newNomad(t)
	n.jobs = []*api.JobListStub{jobStub(id("u"), 10)}
	n.allocs = []*api.AllocationListStub{allocStub(id("u"), "a", 50, "running")}
	n.infos["a"] = &api.Allocation{ID: "a", JobID: id("u"), ClientStatus: "running", CreateIndex: 50, ModifyIndex: 50}
	v := watch(t, n)
	v.told("u")
	for _, path := range []string{"/v1/jobs", "/v1/allocations", "/v1/allocation/a"} {
		n.change(func() { n.fail[path] = http.StatusInternalServerError })
		n.reconnect()
		v.eventually("the failure of "+path+" is not told", func() bool { return v.Current() != nil })
		v.entry("u") // and nothing is taken for lost
		n.change(func() { n.fail = map[string]int{} })
		v.eventually("it does not recover from "+path, func() bool { return v.Current() == nil })
	}
	n.change(func() { n.allocs = nil; n.fail["/v1/job/"+id("u")+"/evaluations"] = http.StatusForbidden })
	n.reconnect()
	v.eventually("the failure of evaluations is not told", func() bool { return v.Current() != nil })
	v.silent()
}

func TestWaitForSyncEndsWithItsContext(t *testing.T) {
	client, err := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	c := New(client, []string{"default"}, cluster, func(types.UID) {}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.WaitForSync(ctx); err == nil {
		t.Error("synced without a list")
	}
}
