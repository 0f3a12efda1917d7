package projection

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Tokens are the service-account tokens that a pod's files hold, by item key.
type Tokens map[string]string

// Files makes the list that the pod's companion is to write. Tokens in old
// that still have time are kept; next is when one wants refreshing (0: none).
// The error is a [translate.MissingError] when something that the pod requires
// does not exist.
func (w *Writer) Files(ctx context.Context, pod *corev1.Pod, f *translate.Files, old Tokens) (list []byte, tokens Tokens, next time.Duration, err error) {
	values := map[string][]byte{}
	tokens = Tokens{}
	for _, it := range f.Items {
		was := ""
		if it.Token != nil {
			was = base64.StdEncoding.EncodeToString([]byte(old[it.Key]))
		}
		data, wait, ok, err := w.value(ctx, pod, it, was)
		if err != nil {
			return nil, nil, 0, err
		}
		if wait > 0 && (next == 0 || wait < next) {
			next = wait
		}
		if it.Token != nil {
			tokens[it.Key] = string(data)
		}
		if ok {
			values[it.Key] = data
		}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	put := func(e companion.Entry) { _ = enc.Encode(e) } // neither the type nor the buffer can fail
	if f.Guest != "" {
		put(companion.Entry{Guest: f.Guest})
	}
	for _, d := range f.Dirs {
		put(companion.Entry{Dir: d.Path, Mode: d.Mode, GID: gid(d.GID), Kept: d.Kept})
	}
	fill := func(files []translate.VolumeFile) {
		for _, file := range files {
			data := []byte(file.Data)
			if file.Item != "" {
				var ok bool
				if data, ok = values[file.Item]; !ok {
					continue // optional, and gone since the files were listed
				}
			}
			put(companion.Entry{File: file.Path, Data: data, Mode: uint32(file.Mode)})
		}
	}
	for _, v := range f.Volumes {
		put(companion.Entry{Volume: v.Path, GID: gid(v.GID)})
		fill(v.Files)
	}
	for _, d := range f.Disks {
		e := companion.Entry{Disk: d.Path, Base: d.Base, Backing: d.Backing, Image: d.Image, SizeMB: d.SizeMB, Raw: d.Raw, ReadOnly: d.ReadOnly, Label: d.Label}
		if d.Archive {
			e.Archive, e.Agent, e.Program = true, translate.VMAgent, program(d.Program, values)
		}
		put(e)
		fill(d.Files)
	}
	put(companion.Entry{End: true})
	return buf.Bytes(), tokens, next, nil
}

// program fills in the values of items. A variable whose only value is gone, or
// was never there, is left out, as the kubelet does with optional ones.
func program(p *translate.Program, values map[string][]byte) *companion.Program {
	out := &companion.Program{Dir: p.Dir, Message: p.Message}
	for _, v := range p.Env {
		if len(v.Value) == 1 && v.Value[0].Item != "" {
			if _, ok := values[v.Value[0].Item]; !ok {
				continue
			}
		}
		out.Env = append(out.Env, companion.Variable{Name: v.Name, Value: value(v.Value, values)})
	}
	for _, w := range p.Words {
		out.Words = append(out.Words, value(w, values))
	}
	return out
}

func value(v translate.Value, values map[string][]byte) companion.Value {
	out := make(companion.Value, 0, len(v))
	for _, p := range v {
		part := companion.Part{Data: []byte(p.Text), Run: p.Run}
		if p.Item != "" {
			part.Data = values[p.Item]
		}
		out = append(out, part)
	}
	return out
}

func gid(p *int64) int {
	if p == nil {
		return 0
	}
	return int(*p)
}
