package report

import (
	"bytes"
	"strings"
	"testing"
)

func TestTextSaysWhatToDo(t *testing.T) {
	r := &Report{}
	r.OK("machine", "nft", "1.0.6")
	if r.Err() != nil {
		t.Error(r.Err())
	}
	r.Add(Check{Where: "machine", What: "forwarding", Result: Fail, Found: "off", Breaks: "all pods", Remedy: "one\ntwo"})
	var out bytes.Buffer
	if err := r.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	want := `machine
  ok       nft         1.0.6
  fail     forwarding  off
             breaks all pods
             do     one
                   two

1 ok, 0 warn, 1 fail, 0 unknown
`
	if strings.TrimSpace(out.String()) != strings.TrimSpace(want) {
		t.Errorf("%s", out.String())
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "1 check failed") {
		t.Error(err)
	}
}
