package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// Seen writes below seen/ that the node lives now, unless that was written less
// than interval ago. It is no part of the record: nobody watches it, or every
// node's word would wake every other.
func (r *Registry) Seen(ctx context.Context, id fabric.ID, interval time.Duration) error {
	key := r.prefix + seenDir + string(id)
	q, cancel := query(ctx)
	defer cancel()
	pair, _, err := r.client.KV().Get(key, q)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	now := time.Now().UTC()
	if pair != nil {
		if last, err := parseSeen(pair); err == nil && now.Sub(last).Abs() < interval {
			return nil
		}
	}
	// To the nanosecond: Consul takes a value that is there already for no write.
	put := &api.KVPair{Key: key, Value: []byte(now.Format(time.RFC3339Nano))}
	if _, err := r.client.KV().Put(put, (&api.WriteOptions{}).WithContext(q.Context())); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

func parseSeen(p *api.KVPair) (time.Time, error) {
	return time.Parse(time.RFC3339Nano, string(p.Value))
}
