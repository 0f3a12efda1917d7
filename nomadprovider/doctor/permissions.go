package doctor

// permission is one thing the daemon does in Kubernetes.
type permission struct {
	group, resource, sub, name, namespace string
	verbs                                 []string
	// breaks is what does not work without it; vital means that no pod would.
	breaks string
	vital  bool
}

// permissions are the rules of deploy/kubernetes/rbac.yaml.
var permissions = []permission{
	{resource: "nodes", verbs: []string{"get", "list", "watch", "create", "patch", "update"}, breaks: "virtual nodes are not registered or not kept up", vital: true},
	{resource: "nodes", sub: "status", verbs: []string{"patch", "update"}, breaks: "virtual nodes never become Ready", vital: true},
	{resource: "pods", verbs: []string{"get", "list", "watch", "delete"}, breaks: "pods are not seen, or stay Terminating", vital: true},
	{resource: "pods", sub: "status", verbs: []string{"patch"}, breaks: "pods stay Pending though they run", vital: true},
	{resource: "events", verbs: []string{"create", "patch"}, breaks: "no events on pods and nodes"},
	{resource: "configmaps", verbs: []string{"get", "list", "watch"}, breaks: "pods that use ConfigMaps do not start", vital: true},
	{resource: "secrets", verbs: []string{"get", "list", "watch"}, breaks: "pods that use Secrets do not start", vital: true},
	{resource: "persistentvolumeclaims", verbs: []string{"get", "list", "watch", "update"}, breaks: "pods with claims do not start, and claims of StorageClass nomad-host-volume stay unbound"},
	{resource: "persistentvolumes", verbs: []string{"get", "list", "watch", "create", "patch", "delete"}, breaks: "pods with claims do not start, and claims of StorageClass nomad-host-volume stay unbound"},
	{group: "storage.k8s.io", resource: "storageclasses", verbs: []string{"get", "list", "watch"}, breaks: "claims of StorageClass nomad-host-volume stay unbound"},
	{group: "storage.k8s.io", resource: "csidrivers", verbs: []string{"get"}, breaks: "whether the driver's object is there is not known"},
	{resource: "services", verbs: []string{"get", "list", "watch"}, breaks: "pods get no environment variables of services"},
	{group: "networking.k8s.io", resource: "networkpolicies", verbs: []string{"list", "watch"}, breaks: "pods are not told of NetworkPolicies that select them, which are not enforced"},
	{resource: "serviceaccounts", sub: "token", verbs: []string{"create"}, breaks: "pods with a service account's token do not start", vital: true},
	{group: "authentication.k8s.io", resource: "tokenreviews", verbs: []string{"create"}, breaks: "kubectl logs and exec are refused"},
	{group: "authorization.k8s.io", resource: "subjectaccessreviews", verbs: []string{"create"}, breaks: "kubectl logs and exec are refused"},
	{group: "certificates.k8s.io", resource: "certificatesigningrequests", verbs: []string{"create", "get", "list", "watch"}, breaks: "kubelet.serverTLSBootstrap asks for no certificate"},
	{resource: "namespaces", name: "kube-system", verbs: []string{"get"}, breaks: "the cluster's ID is not known; set cluster in the configuration"},
	{group: "coordination.k8s.io", resource: "leases", namespace: "kube-node-lease", verbs: []string{"get", "create", "update"}, breaks: "virtual nodes turn NotReady and their pods are evicted", vital: true},
	{group: "coordination.k8s.io", resource: "leases", namespace: "kube-system", verbs: []string{"get", "create", "update"}, breaks: "no process is elected to act", vital: true},
}
