package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"

	"sigs.k8s.io/yaml"
)

// The kinds of reasons.
const (
	// kindOpen is a failure with a way out.
	kindOpen = "open"
	// kindImpossible is one that Nomad leaves no way out of.
	kindImpossible = "impossible"
	// kindSometimes is a failure that strikes by chance, with a way out.
	kindSometimes = "sometimes"
	// kindMachine is one that the machine of the run is to blame for.
	kindMachine = "machine"
)

// reason is an entry of reasons.yaml: why specs fail. A person writes it.
type reason struct {
	// Specs is a regular expression; every spec that it matches must fail, unless
	// the kind is sometimes.
	Specs string `json:"specs"`
	// Failure is one that the failure's text has to match, too.
	Failure string `json:"failure,omitempty"`
	// Node is virtual or kubelet; empty is virtual.
	Node string `json:"node,omitempty"`
	// Kind is open, impossible, sometimes or machine.
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
	// WayOut is what would make an open one pass.
	WayOut string `json:"wayOut,omitempty"`
	// Proof is what shows that an impossible one is.
	Proof string `json:"proof,omitempty"`

	specs, failure *regexp.Regexp
}

func loadReasons(file string) ([]reason, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseReasons(data)
}

func parseReasons(data []byte) ([]reason, error) {
	var list []reason
	if err := yaml.UnmarshalStrict(data, &list); err != nil {
		return nil, fmt.Errorf("reasons: %w", err)
	}
	var errs []error
	for i := range list {
		if err := list[i].complete(); err != nil {
			errs = append(errs, fmt.Errorf("reasons[%d]: %w", i, err))
		}
	}
	return list, errors.Join(errs...)
}

func (r *reason) complete() error {
	var err error
	if r.specs, err = regexp.Compile(r.Specs); err != nil {
		return fmt.Errorf("specs: %w", err)
	}
	if r.failure, err = regexp.Compile(r.Failure); err != nil {
		return fmt.Errorf("failure: %w", err)
	}
	if r.Node == "" {
		r.Node = virtualNode
	}
	switch {
	case r.Specs == "":
		return errors.New("specs: is missing")
	case r.Node != virtualNode && r.Node != controlNode:
		return fmt.Errorf("node: %q is neither %s nor %s", r.Node, virtualNode, controlNode)
	case r.Reason == "":
		return errors.New("reason: is missing")
	case (r.Kind == kindOpen || r.Kind == kindSometimes) && r.WayOut == "":
		return fmt.Errorf("wayOut: is missing, which the kind %s needs", r.Kind)
	case r.Kind == kindImpossible && r.Proof == "":
		return errors.New("proof: is missing, which an impossible spec needs")
	case !slices.Contains([]string{kindOpen, kindImpossible, kindSometimes, kindMachine}, r.Kind):
		return fmt.Errorf("kind: %q is none of %s, %s, %s, %s", r.Kind, kindOpen, kindImpossible, kindSometimes, kindMachine)
	}
	return nil
}

// reasonFor is the first entry that matches a failure, or nil.
func reasonFor(list []reason, node string, failed result) *reason {
	for i := range list {
		if list[i].Node == node && list[i].specs.MatchString(failed.Spec) && list[i].failure.MatchString(failed.Failure) {
			return &list[i]
		}
	}
	return nil
}

// stale tells which reasons are no longer true of the results, spec by spec.
func stale(list []reason, byNode map[string]results) []error {
	var errs []error
	for _, r := range list {
		specs := byNode[r.Node].all()
		if len(specs) == 0 {
			continue // that node has not been run yet
		}
		n := 0
		for _, one := range specs {
			if !r.specs.MatchString(one.Spec) {
				continue
			}
			n++
			if one.State == passed && r.Kind != kindSometimes {
				errs = append(errs, fmt.Errorf("reasons: %q (node %s) passes: take it out of %q", one.Spec, r.Node, r.Specs))
			}
		}
		if n == 0 {
			errs = append(errs, fmt.Errorf("reasons: %q matches no spec that ran (node %s)", r.Specs, r.Node))
		}
	}
	return errs
}
