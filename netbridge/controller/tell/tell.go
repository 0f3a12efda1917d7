package tell

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// Object is one that Events can be about.
type Object interface {
	runtime.Object
	metav1.Object
}

// Teller is one room's. It is not safe for concurrent use.
type Teller struct {
	Recorder record.EventRecorder
	// Reason is that of its Events.
	Reason string

	told map[wrong]bool
}

type wrong struct {
	uid     types.UID
	message string
}

// Pass is one look at everything.
type Pass struct {
	t   *Teller
	now map[wrong]bool
}

// Begin begins one.
func (t *Teller) Begin() *Pass { return &Pass{t, map[wrong]bool{}} }

// Wrong says what is wrong with an object; no error is nothing.
func (p *Pass) Wrong(obj Object, err error) {
	if err == nil {
		return
	}
	w := wrong{obj.GetUID(), err.Error()}
	p.now[w] = true
	if !p.t.told[w] {
		p.t.Recorder.Event(obj, corev1.EventTypeWarning, p.t.Reason, w.message)
	}
}

// End forgets what is no longer wrong, and returns how much is.
func (p *Pass) End() int {
	p.t.told = p.now
	return len(p.now)
}
