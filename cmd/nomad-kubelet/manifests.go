package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// manifests is what an input of the dry run holds.
type manifests struct {
	pods []dryRunPod
	// configMaps and secrets are keyed by namespace.
	configMaps, binary, secrets map[string]translate.Keys
	services                    []corev1.Service
	skipped                     []string
}

// dryRunPod is a pod, or the template of a workload's pods.
type dryRunPod struct {
	source string
	pod    *corev1.Pod
}

// parseManifests reads YAML or JSON documents. Unknown fields are errors,
// since a misspelt one would otherwise be dropped in silence.
func parseManifests(data []byte) (*manifests, error) {
	m := &manifests{configMaps: map[string]translate.Keys{}, binary: map[string]translate.Keys{}, secrets: map[string]translate.Keys{}}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, err
		}
		if err := m.add(doc); err != nil {
			return nil, err
		}
	}
}

func (m *manifests) add(doc []byte) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		return err
	}
	decode := func(into any) error {
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			return fmt.Errorf("%s: %w", kind.Kind, err)
		}
		return nil
	}
	switch kind.APIVersion + "/" + kind.Kind {
	case "/":
		return nil // an empty document
	case "v1/List":
		return m.addList(doc)
	case "v1/Pod":
		pod := &corev1.Pod{}
		if err := decode(pod); err != nil {
			return err
		}
		m.addPod("Pod", pod)
	case "v1/ConfigMap":
		o := &corev1.ConfigMap{}
		if err := decode(o); err != nil {
			return err
		}
		keys := slices.Concat(slices.Collect(maps.Keys(o.Data)), slices.Collect(maps.Keys(o.BinaryData)))
		addKeys(m.configMaps, o.ObjectMeta, keys)
		addKeys(m.binary, o.ObjectMeta, slices.Collect(maps.Keys(o.BinaryData)))
	case "v1/Secret":
		o := &corev1.Secret{}
		if err := decode(o); err != nil {
			return err
		}
		keys := slices.Concat(slices.Collect(maps.Keys(o.Data)), slices.Collect(maps.Keys(o.StringData)))
		addKeys(m.secrets, o.ObjectMeta, keys)
	case "v1/Service":
		o := corev1.Service{}
		if err := decode(&o); err != nil {
			return err
		}
		o.Namespace = namespaceOf(o.ObjectMeta)
		m.services = append(m.services, o)
	default:
		return m.addWorkload(kind, decode)
	}
	return nil
}

func (m *manifests) addList(doc []byte) error {
	var list struct {
		Items []runtime.RawExtension `json:"items"`
	}
	if err := yaml.Unmarshal(doc, &list); err != nil {
		return err
	}
	for _, item := range list.Items {
		if err := m.add(item.Raw); err != nil {
			return err
		}
	}
	return nil
}

// addWorkload adds the pod that a workload's controller would create.
func (m *manifests) addWorkload(kind metav1.TypeMeta, decode func(any) error) error {
	var meta *metav1.ObjectMeta
	var template *corev1.PodTemplateSpec
	var object any
	suffix, prepare := "-x", func() {}
	switch kind.APIVersion + "/" + kind.Kind {
	case "apps/v1/Deployment":
		o := &appsv1.Deployment{}
		object, meta, template = o, &o.ObjectMeta, &o.Spec.Template
	case "apps/v1/ReplicaSet":
		o := &appsv1.ReplicaSet{}
		object, meta, template = o, &o.ObjectMeta, &o.Spec.Template
	case "apps/v1/DaemonSet":
		o := &appsv1.DaemonSet{}
		object, meta, template = o, &o.ObjectMeta, &o.Spec.Template
	case "apps/v1/StatefulSet":
		o := &appsv1.StatefulSet{}
		object, meta, template, suffix = o, &o.ObjectMeta, &o.Spec.Template, "-0"
		prepare = func() { statefulPod(o) }
	case "batch/v1/Job":
		o := &batchv1.Job{}
		object, meta, template = o, &o.ObjectMeta, &o.Spec.Template
	case "batch/v1/CronJob":
		o := &batchv1.CronJob{}
		object, meta, template = o, &o.ObjectMeta, &o.Spec.JobTemplate.Spec.Template
	default:
		m.skipped = append(m.skipped, fmt.Sprintf("%s %s has no pods", kind.APIVersion, kind.Kind))
		return nil
	}
	if err := decode(object); err != nil {
		return err
	}
	prepare()
	pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	pod.Name, pod.Namespace = meta.Name+suffix, meta.Namespace
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: kind.APIVersion, Kind: kind.Kind, Name: meta.Name, Controller: new(true)}}
	m.addPod(kind.Kind, pod)
	m.pods[len(m.pods)-1].source = kind.Kind + " " + pod.Namespace + "/" + meta.Name
	return nil
}

// statefulPod gives the template what the StatefulSet's controller adds.
func statefulPod(o *appsv1.StatefulSet) {
	spec := &o.Spec.Template.Spec
	spec.Hostname, spec.Subdomain = o.Name+"-0", o.Spec.ServiceName
	for _, claim := range o.Spec.VolumeClaimTemplates {
		spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == claim.Name })
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + o.Name + "-0"},
		}})
	}
}

// addPod gives the pod what the API server would have.
func (m *manifests) addPod(kind string, pod *corev1.Pod) {
	pod.Namespace = namespaceOf(pod.ObjectMeta)
	if pod.Name == "" {
		pod.Name = pod.GenerateName + "x"
	}
	if pod.UID == "" {
		// The same input gets the same job.
		h := fmt.Sprintf("%x", sha256.Sum256([]byte(kind+pod.Namespace+"/"+pod.Name)))
		pod.UID = types.UID(h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:32])
	}
	setPodDefaults(&pod.Spec)
	m.pods = append(m.pods, dryRunPod{source: kind + " " + pod.Namespace + "/" + pod.Name, pod: pod})
}

// setPodDefaults applies the API server's defaults where they matter
// (k8s.io/kubernetes/pkg/apis/core/v1/defaults.go).
func setPodDefaults(spec *corev1.PodSpec) {
	orDefault(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	orDefault(&spec.DNSPolicy, corev1.DNSClusterFirst)
	if spec.TerminationGracePeriodSeconds == nil {
		spec.TerminationGracePeriodSeconds = new(int64(corev1.DefaultTerminationGracePeriodSeconds))
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			setContainerDefaults(&list[i], spec.HostNetwork)
		}
	}
}

func setContainerDefaults(c *corev1.Container, hostNetwork bool) {
	orDefault(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	orDefault(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		name := c.Image[strings.LastIndexByte(c.Image, '/')+1:]
		if !strings.Contains(name, "@") && (!strings.Contains(name, ":") || strings.HasSuffix(name, ":latest")) {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
	for i := range c.Ports {
		orDefault(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			orDefault(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
}

func orDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func namespaceOf(meta metav1.ObjectMeta) string {
	if meta.Namespace == "" {
		return corev1.NamespaceDefault
	}
	return meta.Namespace
}

func addKeys(to map[string]translate.Keys, meta metav1.ObjectMeta, keys []string) {
	ns := namespaceOf(meta)
	if to[ns] == nil {
		to[ns] = translate.Keys{}
	}
	slices.Sort(keys)
	to[ns][meta.Name] = slices.Compact(keys)
}

// inputs adds to the node's inputs what the input holds of a namespace.
func (m *manifests) inputs(in translate.Inputs, namespace string) translate.Inputs {
	in.ConfigMaps, in.BinaryKeys, in.Secrets = m.configMaps[namespace], m.binary[namespace], m.secrets[namespace]
	in.Services = slices.Clone(m.services)
	slices.SortFunc(in.Services, func(a, b corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	return in
}
