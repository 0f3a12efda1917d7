package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	deploykubernetes "github.com/nomad-kubelet/nomad-kubelet/deploy/kubernetes"
)

const fieldManager = "nomad-kubelet-dev"

// RESTConfig is the administrator's connection to the API server.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.KubeconfigFile())
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 200, 400
	return cfg, nil
}

func (c *Cluster) kubernetes() (*kubernetes.Clientset, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	cfg.Timeout = 10 * time.Second
	return kubernetes.NewForConfig(cfg)
}

// controllersReady waits for a fruit of the controllers' work that bare pods
// need, too: the namespace's service account.
func (c *Cluster) controllersReady(ctx context.Context) error {
	if err := httpOK(fmt.Sprintf("https://127.0.0.1:%d/healthz", c.Ports.ControllerManager))(ctx); err != nil {
		return err
	}
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	_, err = client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
	return err
}

// runtimeClasses are those that the virtual node's driver table knows.
func (c *Cluster) runtimeClasses() []string {
	classes := []string{"nomad-vm"}
	if c.opts.MockRuntime {
		classes = append(classes, "nomad-mock")
	}
	return classes
}

// applyObjects creates what the cluster needs beyond what Kubernetes brings.
func (c *Cluster) applyObjects(ctx context.Context) error {
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	for _, name := range c.runtimeClasses() {
		class := &nodev1.RuntimeClass{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": fieldManager}},
			Handler:    name,
		}
		_, err := client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create RuntimeClass %s: %w", name, err)
		}
	}
	if !c.ownKubernetes() {
		return nil
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: apiserverGroup},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:kubelet-api-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: apiserverGroup}},
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("bind the API server to the kubelet API: %w", err)
	}
	// The account itself, for whoever wants a token of it, and its roles.
	if err := c.apply(ctx, "serviceaccount.yaml", deploykubernetes.ServiceAccount); err != nil {
		return err
	}
	if err := c.apply(ctx, "rbac.yaml", deploykubernetes.RBAC); err != nil {
		return err
	}
	// Claims that name no class are for Nomad here: there is no other.
	const isDefault = "storageclass.kubernetes.io/is-default-class: "
	return c.apply(ctx, "storage.yaml", strings.Replace(deploykubernetes.Storage, isDefault+`"false"`, isDefault+`"true"`, 1))
}

// apply applies manifests, as kubectl apply --server-side does.
func (c *Cluster) apply(ctx context.Context, name, manifests string) error {
	cfg, err := c.RESTConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	groups, err := restmapper.GetAPIGroupResources(client.Discovery())
	if err != nil {
		return fmt.Errorf("ask which kinds the API server knows: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	docs := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4<<10)
	for {
		obj := &unstructured.Unstructured{}
		if err := docs.Decode(obj); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(obj.Object) == 0 {
			continue
		}
		if err := applyOne(ctx, dyn, mapper, obj); err != nil {
			return fmt.Errorf("%s: %s %s: %w", name, obj.GetKind(), obj.GetName(), err)
		}
	}
}

func applyOne(ctx context.Context, dyn dynamic.Interface, mapper meta.RESTMapper, obj *unstructured.Unstructured) error {
	gvk := obj.GroupVersionKind()
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return err
	}
	var client dynamic.ResourceInterface = dyn.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		ns := obj.GetNamespace()
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
		client = dyn.Resource(mapping.Resource).Namespace(ns)
	}
	_, err = client.Apply(ctx, obj.GetName(), obj, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}
