package imports

import (
	"context"
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (t target) count() (n int) {
	for _, s := range t.has {
		n += len(s.Endpoints)
	}
	return n
}

// bringEndpoints writes the slices of one Service, unless Consul has not answered
// or does not know the service any more.
func (i *Importer) bringEndpoints(ctx context.Context, s *state, t target) {
	n := t.count()
	s.endpoints += n
	if n > 0 {
		s.known[t.q.String()] = true
	}
	entries, ok := i.answers.about(t.q)
	if !ok {
		return
	}
	if len(entries) == 0 {
		if n > 0 {
			s.lost[t.q.String()] = true
		}
		return
	}
	by, err := endpoints(foreign(i.Fabric, entries))
	s.events.Wrong(t.svc, err)
	want, err := slicesOf(t.svc, by)
	if err != nil {
		s.events.Wrong(t.svc, err)
		return
	}
	for _, is := range t.has {
		w := want[is.Name]
		delete(want, is.Name)
		switch {
		case w == nil:
			s.fail(i.removeSlice(ctx, is))
		case differs(is, w):
			w.ResourceVersion = is.ResourceVersion
			s.fail(i.writeSlice(ctx, w))
		}
	}
	for _, w := range want {
		s.fail(i.writeSlice(ctx, w))
	}
}

// writeSlice makes a slice, or replaces the one of that version. That another pass
// was first is no error: what it wrote comes by the informer.
func (i *Importer) writeSlice(ctx context.Context, s *discoveryv1.EndpointSlice) (err error) {
	api := i.Kube.DiscoveryV1().EndpointSlices(s.Namespace)
	if s.ResourceVersion == "" {
		_, err = api.Create(ctx, s, metav1.CreateOptions{})
	} else {
		_, err = api.Update(ctx, s, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("write EndpointSlice %s/%s: %w", s.Namespace, s.Name, err)
	}
	i.Log.Info("imported", "slice", s.Namespace+"/"+s.Name, "endpoints", len(s.Endpoints))
	return nil
}

func (i *Importer) removeSlice(ctx context.Context, s *discoveryv1.EndpointSlice) error {
	err := i.Kube.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove EndpointSlice %s/%s: %w", s.Namespace, s.Name, err)
	}
	i.Log.Info("endpoints are no longer imported", "slice", s.Namespace+"/"+s.Name)
	return nil
}
