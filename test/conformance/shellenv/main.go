// Command shellenv is sh and env in the suite's image of busybox.
//
// Specs expect of that image what Debian's busybox does not do: its shell keeps
// environment variables whose names no shell could use, such as a-b, for the
// programs it runs. So sh hands such variables past the shell in one with a
// usable name, and env, which is what the specs look with, puts them back.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

const (
	busybox = "/usr/bin/busybox"
	kept    = "SHELLENV_KEPT"
)

var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func main() {
	applet := filepath.Base(os.Args[0])
	env := os.Environ()
	if applet == "env" {
		env = restore(env)
	} else {
		env = hide(env)
	}
	args := append([]string{os.Args[0]}, os.Args[1:]...)
	if err := syscall.Exec(busybox, args, env); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(126)
	}
}

// hide moves the variables that a shell would drop into one that it keeps.
func hide(env []string) []string {
	var usable, others []string
	for _, kv := range env {
		if shellName.MatchString(kv) {
			usable = append(usable, kv)
		} else {
			others = append(others, kv)
		}
	}
	if len(others) == 0 {
		return env
	}
	data, err := json.Marshal(others)
	if err != nil {
		return env
	}
	return append(usable, kept+"="+string(data))
}

// restore undoes hide.
func restore(env []string) []string {
	var out []string
	for _, kv := range env {
		value, ok := strings.CutPrefix(kv, kept+"=")
		if !ok {
			out = append(out, kv)
			continue
		}
		var others []string
		if json.Unmarshal([]byte(value), &others) == nil {
			out = append(out, others...)
		}
	}
	return out
}
