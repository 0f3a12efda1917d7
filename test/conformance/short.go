package main

import (
	"errors"
	"os"
	"regexp"
	"strings"
)

// shortSpecs makes a focus of the specs that a file names, one a line. Lines
// that begin with # are remarks.
func shortSpecs(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var specs []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			specs = append(specs, regexp.QuoteMeta(line))
		}
	}
	if len(specs) == 0 {
		return "", errors.New("short.txt names no spec")
	}
	return "(" + strings.Join(specs, "|") + ")", nil
}
