package devcluster

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	serviceCIDR = "10.96.0.0/16"
	// The first address of serviceCIDR, under which pods know the API server.
	kubernetesService = "10.96.0.1"

	// apiserverGroup is what the API server's client certificate for kubelets
	// belongs to; it is bound to system:kubelet-api-admin.
	apiserverGroup = "nomad-kubelet-dev:apiserver"
	// provider is the account of nomad-kubelet, as deploy/kubernetes has it.
	providerNamespace, providerAccount = "kube-system", "nomad-kubelet"
)

func (c *Cluster) pki() pki { return pki{filepath.Join(c.opts.Dir, "pki")} }

func (c *Cluster) apiServerURL() string {
	return fmt.Sprintf("https://127.0.0.1:%d", c.Ports.APIServer)
}

// onPremAPIServer is the API server as the real node reaches it.
func (c *Cluster) onPremAPIServer() string {
	if !c.opts.PodNetwork {
		return c.apiServerURL()
	}
	return fmt.Sprintf("https://%s:%d", c.underlayAddress(), c.Ports.APIServer)
}

// writeIdentities makes every certificate and kubeconfig of the control plane.
func (c *Cluster) writeIdentities() error {
	p := c.pki()
	for _, ca := range []string{"ca", "front-proxy-ca"} {
		if err := p.authority(ca); err != nil {
			return err
		}
	}
	if err := p.signingKeys(); err != nil {
		return err
	}
	serving := append([]string{"127.0.0.1", "localhost", kubernetesService, "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, globalAddresses()...)
	provider := subject{name: "system:serviceaccount:" + providerNamespace + ":" + providerAccount,
		groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + providerNamespace}}
	for _, cert := range []struct {
		ca, name string
		subject
	}{
		{"ca", "apiserver", subject{name: "kube-apiserver", hosts: serving}},
		{"ca", "apiserver-kubelet-client", subject{name: "kube-apiserver-kubelet-client", groups: []string{apiserverGroup}}},
		{"front-proxy-ca", "front-proxy-client", subject{name: "front-proxy-client"}},
		{"ca", "admin", subject{name: "kubernetes-admin", groups: []string{"system:masters"}}},
		{"ca", "controller-manager", subject{name: "system:kube-controller-manager"}},
		{"ca", "scheduler", subject{name: "system:kube-scheduler"}},
		{"ca", "nomad-kubelet", provider},
	} {
		if err := p.issue(cert.ca, cert.name, cert.subject); err != nil {
			return err
		}
	}
	for file, cert := range map[string]string{
		c.KubeconfigFile():                      "admin",
		p.path("controller-manager.kubeconfig"): "controller-manager",
		p.path("scheduler.kubeconfig"):          "scheduler",
		c.providerKubeconfig():                  "nomad-kubelet",
	} {
		if err := c.writeKubeconfig(file, cert, c.apiServerURL()); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) writeKubeconfig(file, cert, server string) error {
	p := c.pki()
	kc := clientcmdapi.NewConfig()
	kc.Clusters["dev"] = &clientcmdapi.Cluster{Server: server, CertificateAuthority: p.path("ca.crt")}
	kc.AuthInfos[cert] = &clientcmdapi.AuthInfo{ClientCertificate: p.path(cert + ".crt"), ClientKey: p.path(cert + ".key")}
	kc.Contexts["dev"] = &clientcmdapi.Context{Cluster: "dev", AuthInfo: cert}
	kc.CurrentContext = "dev"
	if file == c.KubeconfigFile() {
		// The user's own may be copied elsewhere, so it stands alone.
		if err := clientcmdapi.FlattenConfig(kc); err != nil {
			return err
		}
	}
	return clientcmd.WriteToFile(*kc, file)
}

func (c *Cluster) etcdCommand() (command, error) {
	path, err := c.find("etcd")
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", c.Ports.Etcd), fmt.Sprintf("http://127.0.0.1:%d", c.Ports.EtcdPeer)
	return command{path: path, args: []string{
		"--name=dev", "--data-dir=" + filepath.Join(c.opts.Dir, "etcd"),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=dev=" + peer,
		// A development cluster's data need not survive a power cut.
		"--unsafe-no-fsync", "--log-level=warn",
	}}, err
}

func (c *Cluster) apiServerCommand() (command, error) {
	path, err := c.find("kube-apiserver")
	p := c.pki()
	advertise := "192.0.2.1" // loopback is refused; nothing listens to this one without a network
	if ips := globalAddresses(); len(ips) > 0 {
		advertise = ips[0]
	}
	if c.opts.PodNetwork {
		advertise = c.underlayAddress().String()
	}
	return command{path: path, args: []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.Ports.Etcd),
		"--bind-address=" + c.opts.BindAddress, "--secure-port=" + strconv.Itoa(c.Ports.APIServer),
		"--advertise-address=" + advertise,
		"--tls-cert-file=" + p.path("apiserver.crt"), "--tls-private-key-file=" + p.path("apiserver.key"),
		"--client-ca-file=" + p.path("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged", "--service-cluster-ip-range=" + serviceCIDR,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + p.path("sa.pub"), "--service-account-signing-key-file=" + p.path("sa.key"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--kubelet-client-certificate=" + p.path("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + p.path("apiserver-kubelet-client.key"),
		"--requestheader-client-ca-file=" + p.path("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + p.path("front-proxy-client.crt"), "--proxy-client-key-file=" + p.path("front-proxy-client.key"),
		// No kube-proxy here: aggregated APIs are reached at their endpoints.
		"--enable-aggregator-routing",
	}}, err
}

func (c *Cluster) controllerManagerCommand() (command, error) {
	path, err := c.find("kube-controller-manager")
	p := c.pki()
	kc := p.path("controller-manager.kubeconfig")
	return command{path: path, args: []string{
		"--kubeconfig=" + kc, "--authentication-kubeconfig=" + kc, "--authorization-kubeconfig=" + kc,
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.Ports.ControllerManager),
		"--leader-elect=false", "--use-service-account-credentials",
		"--root-ca-file=" + p.path("ca.crt"), "--service-account-private-key-file=" + p.path("sa.key"),
		"--cluster-signing-cert-file=" + p.path("ca.crt"), "--cluster-signing-key-file=" + p.path("ca.key"),
		"--service-cluster-ip-range=" + serviceCIDR,
	}}, err
}

func (c *Cluster) schedulerCommand() (command, error) {
	path, err := c.find("kube-scheduler")
	kc := c.pki().path("scheduler.kubeconfig")
	return command{path: path, args: []string{
		"--kubeconfig=" + kc, "--authentication-kubeconfig=" + kc, "--authorization-kubeconfig=" + kc,
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.Ports.Scheduler), "--leader-elect=false",
	}}, err
}

func (c *Cluster) apiServerReady(ctx context.Context) error {
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// globalAddresses are this machine's IPv4 addresses that others can reach.
func globalAddresses() []string {
	var out []string
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	return out
}
