package node

import (
	"context"
	"fmt"
	"path"
	"time"

	"github.com/hashicorp/nomad/api"
)

// askTimeout bounds the questions that are asked of Nomad besides the stream.
const askTimeout = 5 * time.Second

// PoolExists asks Nomad whether it knows a node pool.
func (c *Clients) PoolExists(ctx context.Context, pool string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, _, err := c.nomad.NodePools().Info(pool, (&api.QueryOptions{}).WithContext(ctx))
	if isStatus(err, 404) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read Nomad's node pool %q: %w", pool, err)
	}
	return true, nil
}

// MemoryOversubscription asks whether Nomad's scheduler honours memory_max in
// a pool: the cluster's setting, unless the pool overrides it.
func (c *Clients) MemoryOversubscription(ctx context.Context, pool string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(ctx)
	if p, _, err := c.nomad.NodePools().Info(pool, q); err == nil && p.SchedulerConfiguration != nil &&
		p.SchedulerConfiguration.MemoryOversubscriptionEnabled != nil {
		return *p.SchedulerConfiguration.MemoryOversubscriptionEnabled, nil
	}
	conf, _, err := c.nomad.Operator().SchedulerGetConfiguration(q)
	if err != nil {
		return false, fmt.Errorf("read Nomad's scheduler configuration: %w", err)
	}
	return conf.SchedulerConfig != nil && conf.SchedulerConfig.MemoryOversubscriptionEnabled, nil
}

// Region asks for the name of the region that the connection leads to; empty
// when there are several and the token may not ask the agent.
func (c *Clients) Region() (string, error) {
	if region, err := c.nomad.Agent().Region(); err == nil && region != "" {
		return region, nil
	}
	regions, err := c.nomad.Regions().List()
	if err != nil {
		return "", fmt.Errorf("list Nomad's regions: %w", err)
	}
	if len(regions) == 1 {
		return regions[0], nil
	}
	return "", nil
}

// inPool tells whether a client belongs to a pool and, where given, to one of
// the datacenters, which may be patterns as in a Nomad job ("dc*").
func inPool(c ClientInfo, pool string, datacenters []string) bool {
	if pool != api.NodePoolAll && c.Pool != pool {
		return false
	}
	if len(datacenters) == 0 {
		return true
	}
	for _, dc := range datacenters {
		if ok, err := path.Match(dc, c.Datacenter); err == nil && ok {
			return true
		}
	}
	return false
}
