package companion

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Program is a VM's counterpart of a container's process: the environment, and the
// command if there is one.
type Program struct {
	Env   []Variable `json:"env,omitempty"`
	Words []Value    `json:"words,omitempty"`
	Dir   string     `json:"dir,omitempty"`
	// Message is the file of the command's last words.
	Message string `json:"message,omitempty"`
}

// Variable is one of the environment.
type Variable struct {
	Name  string `json:"name"`
	Value Value  `json:"value"`
}

// Value is put together from parts.
type Value []Part

// Part of a value: data, or a variable of the companion's own environment.
type Part struct {
	Data []byte `json:"data,omitempty"`
	Run  string `json:"run,omitempty"`
}

func (v Value) resolve(getenv func(string) string) string {
	var b strings.Builder
	for _, p := range v {
		if p.Run != "" {
			b.WriteString(getenv(p.Run))
		}
		b.Write(p.Data)
	}
	return b.String()
}

// The files of a program. environFile is as /proc/PID/environ, which is exact;
// envFile as shells and systemd's EnvironmentFile= read it, without the names that
// they do not know; commandFile is a script.
const (
	environFile = "environ"
	envFile     = "env"
	commandFile = "command"
)

// shellName is what a shell takes for a variable's name.
var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// shellOwn are variables that bash, which is sh in some distributions, ends a script
// for setting.
var shellOwn = []string{"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO"}

// files are what a guest needs to run the program.
func (p *Program) files(getenv func(string) string) []Entry {
	var environ, env, command strings.Builder
	command.WriteString("#message " + oneLine(p.Message) + "\nexport HOME=/root\n")
	odd := ""
	for _, v := range p.Env {
		value := v.Value.resolve(getenv)
		environ.WriteString(v.Name + "=" + value + "\x00")
		if shellName.MatchString(v.Name) && !slices.Contains(shellOwn, v.Name) {
			env.WriteString(v.Name + "=" + envQuote(value) + "\n")
			command.WriteString("export " + v.Name + "=" + shellQuote(value) + "\n")
		} else {
			odd += " " + shellQuote(v.Name+"="+value)
		}
	}
	out := []Entry{
		{File: environFile, Data: []byte(environ.String()), Mode: 0o400},
		{File: envFile, Data: []byte(env.String()), Mode: 0o400},
	}
	if len(p.Words) == 0 {
		return out
	}
	if p.Dir != "" {
		command.WriteString("mkdir -p " + shellQuote(p.Dir) + " && cd " + shellQuote(p.Dir) + " || exit\n")
	}
	command.WriteString("exec")
	if odd != "" {
		command.WriteString(" env" + odd)
	}
	for _, w := range p.Words {
		command.WriteString(" " + shellQuote(w.resolve(getenv)))
	}
	command.WriteString("\n")
	return append(out, Entry{File: commandFile, Data: []byte(command.String()), Mode: 0o500})
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "") }

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// envQuote quotes as both shells and systemd understand it (systemd,
// src/basic/env-file.c: SHELL_NEED_ESCAPE).
func envQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace(s) + `"`
}

// environ is the environment that a VM's disk gives its guest, for commands that
// are run in it; nil for none.
func environ(disk string) ([]string, error) {
	f, err := os.Open(disk)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Name != environFile {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil || len(data) == 0 {
			return nil, err
		}
		return withDefaults(strings.Split(string(bytes.TrimSuffix(data, []byte{0})), "\x00")), nil
	}
}

// guestDefaults are what a container's process has without asking; the agent's own
// variables do not reach a command that is given others.
var guestDefaults = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}

func withDefaults(env []string) []string {
	out := env
	for _, d := range guestDefaults {
		name, _, _ := strings.Cut(d, "=")
		if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			out = append(out, d)
		}
	}
	return out
}
