package imports

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
)

// defaultPort is that of a made Service whose instances have different ones.
const defaultPort = 80

// wish is a Service that a Namespace asks for.
type wish struct {
	ns   *corev1.Namespace
	name string
	// is the Service of that name; nil if there is none.
	is *corev1.Service
	// unknown says that Consul's list of all services has not the name.
	unknown bool
}

func (w wish) question() question { return question{service: w.name} }

func (w wish) made() bool {
	return w.is != nil && w.is.Labels[annotations.MadeFor] == annotations.Manager
}

// lookAtNamespaces finds out which Services are to be made, and which of those that
// were made nobody asks for any more.
func (i *Importer) lookAtNamespaces(s *state) error {
	namespaces, err := i.Namespaces.List(labels.Everything())
	if err != nil {
		return err
	}
	by := map[string]map[string]*corev1.Service{}
	for _, svc := range s.services {
		if by[svc.Namespace] == nil {
			by[svc.Namespace] = map[string]*corev1.Service{}
		}
		by[svc.Namespace][svc.Name] = svc
	}
	for _, ns := range namespaces {
		if ns.DeletionTimestamp != nil {
			continue // its Services go with it
		}
		names, all := annotations.ImportedBy(ns)
		s.all = s.all || all
		for _, name := range names {
			if err := annotations.CheckName(name); err != nil {
				s.events.Wrong(ns, err)
				continue
			}
			i.wish(s, wish{ns: ns, name: name, is: by[ns.Name][name]})
		}
		asked := func(name string) bool { return all || slices.Contains(names, name) }
		if all {
			i.wishAll(s, ns, names, by[ns.Name])
		}
		for name, svc := range by[ns.Name] {
			if (wish{is: svc}).made() && !asked(name) {
				s.unasked = append(s.unasked, svc)
			}
		}
	}
	return nil
}

// wishAll has a Service made for each name that Consul knows, Consul's own and what
// this fabric exports left out.
func (i *Importer) wishAll(s *state, ns *corev1.Namespace, named []string, has map[string]*corev1.Service) {
	names, ok := i.answers.allNames()
	exported, known := i.Exported()
	if !ok || !known {
		// Not known yet; what was made goes on.
		for name, svc := range has {
			if w := (wish{ns: ns, name: name, is: svc}); w.made() && !slices.Contains(named, name) {
				i.wish(s, w)
			}
		}
		return
	}
	for name := range names {
		if name == "consul" || exported[name] || slices.Contains(named, name) {
			continue
		}
		if err := annotations.CheckName(name); err != nil {
			s.events.Wrong(ns, err)
			continue
		}
		i.wish(s, wish{ns: ns, name: name, is: has[name]})
	}
	for name, svc := range has {
		w := wish{ns: ns, name: name, is: svc, unknown: true}
		if w.made() && !slices.Contains(named, name) && (!names[name] || exported[name]) {
			i.wish(s, w)
		}
	}
}

func (i *Importer) wish(s *state, w wish) {
	s.wishes = append(s.wishes, w)
	if !w.unknown {
		s.asked[w.question()] = true
	}
}

// makeServices makes what is wished for and Consul has, and finds out what Consul
// has no more.
func (i *Importer) makeServices(ctx context.Context, s *state) {
	for _, svc := range s.unasked {
		s.fail(i.removeService(ctx, svc, "its Namespace asks for it no more"))
	}
	made := 0
	for _, w := range s.wishes {
		if w.made() {
			made++
			s.known[w.question().String()] = true
		}
		entries, ok := i.answers.about(w.question())
		theirs := foreign(i.Fabric, entries)
		switch {
		case w.made():
			if w.unknown || ok && len(theirs) == 0 {
				s.lost[w.question().String()] = true
			}
		case w.is != nil:
			if w.is.Annotations[annotations.Import] == "" {
				s.events.Wrong(w.ns, fmt.Errorf("metadata.annotations[%s]: there is a Service %s already, which was not made for it: annotate that one with %s: %q, or rename it",
					annotations.Import, w.name, annotations.Import, w.name))
			}
		case ok && len(theirs) > 0:
			s.fail(i.makeService(ctx, w, theirs))
		}
	}
	i.Metrics.Made.Set(float64(made))
}

func (i *Importer) makeService(ctx context.Context, w wish, entries []*api.ServiceEntry) error {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.ns.Name, Name: w.name,
			Labels:      map[string]string{annotations.MadeFor: annotations.Manager},
			Annotations: map[string]string{annotations.Import: w.name},
		},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: portFor(entries), Protocol: corev1.ProtocolTCP}}},
	}
	_, err := i.Kube.CoreV1().Services(w.ns.Name).Create(ctx, svc, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil // it comes by the informer
	case err != nil:
		return fmt.Errorf("make Service %s/%s: %w", w.ns.Name, w.name, err)
	}
	i.Log.Info("made a Service for its Namespace", "service", w.ns.Name+"/"+w.name, "port", svc.Spec.Ports[0].Port)
	return nil
}

// portFor is the port that all instances have, if they do.
func portFor(entries []*api.ServiceEntry) int32 {
	port := entries[0].Service.Port
	if port == 0 || slices.ContainsFunc(entries, func(e *api.ServiceEntry) bool { return e.Service.Port != port }) {
		return defaultPort
	}
	return int32(port)
}

func (i *Importer) removeService(ctx context.Context, svc *corev1.Service, because string) error {
	err := i.Kube.CoreV1().Services(svc.Namespace).Delete(ctx, svc.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &svc.UID}})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove Service %s/%s: %w", svc.Namespace, svc.Name, err)
	}
	i.Log.Info("removed a Service that was made", "service", svc.Namespace+"/"+svc.Name, "because", because)
	return nil
}
