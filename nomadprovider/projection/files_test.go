package projection

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// What a VM's guest gets is filled in; an optional variable that is not there is
// left out, and what must be there is missed.
func TestProgram(t *testing.T) {
	r := newRoom(t, cm("c", map[string]string{"k": "one"}), sec("s", map[string][]byte{"p": []byte(hidden)}))
	pod := user("u", []string{"c"}, []string{"s"})
	r.ready(pod)
	disk := translate.Disk{Path: "/d", SizeMB: 1, Archive: true, Program: &translate.Program{
		Env: []translate.Variable{
			{Name: "A", Value: translate.Value{{Text: "at "}, {Item: "cm"}, {Run: "IP"}}},
			{Name: "B", Value: translate.Value{{Item: "none"}}},
			{Name: "C", Value: translate.Value{{Text: "-"}, {Item: "none"}}},
		},
		Words: []translate.Value{{{Text: "serve"}}, {{Item: "sec"}}}, Dir: "/srv", Message: "/dev/last",
	}, Files: []translate.VolumeFile{{Path: "volumes/v/a", Item: "sec", Mode: 0o400}, {Path: "volumes/v/b", Item: "none"}}}
	f := &translate.Files{Disks: []translate.Disk{disk}, Items: []translate.Item{itemCM("cm", "c", "k", false), itemSec("sec", "s", "p", false), itemCM("none", "c", "x", true)}}
	list, _, _, err := r.Files(background, pod, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []companion.Entry
	for dec := json.NewDecoder(bytes.NewReader(list)); ; {
		var e companion.Entry
		if dec.Decode(&e) != nil {
			break
		}
		got = append(got, e)
	}
	part := func(s string) companion.Part { return companion.Part{Data: []byte(s)} }
	want := []companion.Entry{
		{Disk: "/d", SizeMB: 1, Archive: true, Agent: translate.VMAgent, Program: &companion.Program{
			Env: []companion.Variable{
				{Name: "A", Value: companion.Value{part("at "), part("one"), {Run: "IP"}}},
				{Name: "C", Value: companion.Value{part("-"), {}}},
			},
			Words: []companion.Value{{part("serve")}, {part(hidden)}}, Dir: "/srv", Message: "/dev/last",
		}},
		{File: "volumes/v/a", Data: []byte(hidden), Mode: 0o400}, {End: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	f.Items[2].Optional = false
	var missing *translate.MissingError
	if _, _, _, err := r.Files(background, pod, f, nil); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
}
