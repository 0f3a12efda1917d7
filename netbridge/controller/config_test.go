package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "controller.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestSmallestConfiguration(t *testing.T) {
	c, err := load(t, "fabric: prod")
	if err != nil {
		t.Fatal(err)
	}
	if c.Export.Node != "k8s-prod" || c.Collect.After.Duration != 24*time.Hour || c.Hold.Duration != 5*time.Minute || c.LeaderElection.Namespace != "kube-system" {
		t.Errorf("%+v", c)
	}
}

func TestWrongKeysAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"Fabric: other":                       `unknown field "Fabric"`,
		"collect: {age: 1h}":                  `unknown field "collect.age"`,
		"fabric: a/b":                         "fabric: ",
		"leaderElection: {leaseDuration: 1s}": "leaderElection.leaseDuration: 1s",
		"hold: -1s":                           "hold: -1s",
		"address: localhost":                  "address: ",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", text, want, err)
		}
	}
}
