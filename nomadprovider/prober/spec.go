package prober

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Spec is a container's probe with its defaults
// (pkg/apis/core/v1/defaults.go), ports as numbers, and podIP for the host
// where none is given.
func Spec(c *corev1.Container, kind probes.Kind, p *corev1.Probe, podIP string) probes.Probe {
	return probes.Probe{
		Container:        c.Name,
		Kind:             kind,
		InitialDelay:     seconds(p.InitialDelaySeconds, 0),
		Period:           seconds(p.PeriodSeconds, 10),
		Timeout:          seconds(p.TimeoutSeconds, 1),
		SuccessThreshold: int(max(p.SuccessThreshold, 1)),
		FailureThreshold: count(p.FailureThreshold, 3),
		Action:           action(c, &p.ProbeHandler, podIP),
	}
}

func seconds(n, other int32) time.Duration { return time.Duration(count(n, int(other))) * time.Second }

func count(n int32, other int) int {
	if n <= 0 {
		return other
	}
	return int(n)
}

func action(c *corev1.Container, h *corev1.ProbeHandler, podIP string) probes.Action {
	host := func(h string) string {
		if h == "" {
			return podIP
		}
		return h
	}
	var a probes.Action
	var err error
	switch {
	case h.Exec != nil:
		a.Exec = translate.ProbeCommand(c, h.Exec.Command)
	case h.HTTPGet != nil:
		a.HTTP = &probes.HTTP{Scheme: string(h.HTTPGet.Scheme), Host: host(h.HTTPGet.Host), Path: h.HTTPGet.Path}
		for _, header := range h.HTTPGet.HTTPHeaders {
			a.HTTP.Headers = append(a.HTTP.Headers, probes.Header{Name: header.Name, Value: header.Value})
		}
		a.HTTP.Port, err = port(c, h.HTTPGet.Port)
	case h.TCPSocket != nil:
		a.TCP = &probes.TCP{Host: host(h.TCPSocket.Host)}
		a.TCP.Port, err = port(c, h.TCPSocket.Port)
	case h.GRPC != nil:
		a.GRPC = &probes.GRPC{Host: podIP, Port: int(h.GRPC.Port)}
		if h.GRPC.Service != nil {
			a.GRPC.Service = *h.GRPC.Service
		}
	default:
		err = fmt.Errorf("missing probe handler for container %s", c.Name)
	}
	if err != nil {
		return probes.Action{Broken: err.Error()}
	}
	return a
}

// port follows pkg/probe/util.go, ResolveContainerPort.
func port(c *corev1.Container, p intstr.IntOrString) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		n = 0
		for i := range c.Ports {
			if c.Ports[i].Name == p.StrVal {
				n = int(c.Ports[i].ContainerPort)
			}
		}
		if n == 0 {
			var err error
			if n, err = strconv.Atoi(p.StrVal); err != nil {
				return 0, fmt.Errorf("port %s not found", p.StrVal)
			}
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}
