package translate

import "strings"

// VerdictKind says what becomes of a field.
type VerdictKind string

// The kinds of verdict.
const (
	// Carried fields mean on Nomad what they mean on a kubelet.
	Carried VerdictKind = "carried"
	// Approximated fields are carried with a difference that the verdict
	// states; where it may matter to a pod, a [Note] says so too.
	Approximated VerdictKind = "approximated"
	// Refused fields fail the pod with a [RefusedError].
	Refused VerdictKind = "refused"
	// Scheduler fields have had their effect before a pod is bound.
	Scheduler VerdictKind = "scheduler"
	// Kept fields concern nomad-kubelet or the control plane, not the job.
	Kept VerdictKind = "kept"
)

// Verdict is what becomes of a field of PodSpec.
type Verdict struct {
	Kind VerdictKind
	Text string
}

// VerdictFor returns the verdict on a field, named by its path in PodSpec in
// the JSON form and without indexes, such as containers.env.name. Init
// containers have those of containers, and so have ephemeral ones but for what
// is said of them alone.
func VerdictFor(path string) (Verdict, bool) {
	if rest, ok := strings.CutPrefix(path, "initContainers."); ok {
		path = "containers." + rest
	}
	if v, ok := verdicts[path]; ok {
		return v, true
	}
	for at := path; ; {
		i := strings.LastIndexByte(at, '.')
		if i < 0 {
			if rest, ok := strings.CutPrefix(path, "ephemeralContainers."); ok {
				return VerdictFor("containers." + rest)
			}
			return Verdict{}, false
		}
		at = at[:i]
		if v, ok := verdicts[at+".*"]; ok {
			return v, true
		}
	}
}

const (
	textHost    = "where virtualNodes[].hostAccess allows it; refused elsewhere"
	textNotYet  = "not there yet"
	textHook    = "containers after it do not wait for it"
	textProbe   = "commands by Nomad's exec, the others from the companion within the pod's network; not run, with a note, where there is no companion"
	textWindows = "Windows containers are not supported"
	textCreated = "the value when the pod was created"
	textVolume  = "volumes of this type are not supported on Nomad"
	// textForbidden is for what the API server does not take.
	textForbidden = "Kubernetes does not allow it in ephemeral containers"
)

// verdicts holds one entry for every field of PodSpec, and entries ending in
// ".*" for all fields below one.
var verdicts = map[string]Verdict{
	"activeDeadlineSeconds":         {Kept, "nomad-kubelet stops the job when the time is over"},
	"affinity.*":                    {Scheduler, "among Nodes, by the virtual node's labels; among Nomad clients by annotation " + AnnotationConstraints},
	"automountServiceAccountToken":  {Kept, "admission adds the volume"},
	"dnsConfig.nameservers":         {Approximated, "replace the client's rather than adding to them where the policy is Default"},
	"dnsConfig.options.name":        {Carried, "as Nomad's dns block"},
	"dnsConfig.options.value":       {Carried, "as Nomad's dns block"},
	"dnsConfig.searches":            {Carried, "as Nomad's dns block"},
	"dnsPolicy":                     {Approximated, "ClusterFirst needs virtualNodes[].clusterDNS; the client's own search domains are not added to the cluster's"},
	"enableServiceLinks":            {Carried, "as variables, with the kubelet's names"},
	"hostAliases.hostnames":         {Carried, "in /etc/hosts"},
	"hostAliases.ip":                {Carried, "in /etc/hosts"},
	"hostIPC":                       {Carried, textHost},
	"hostNetwork":                   {Carried, textHost},
	"hostPID":                       {Carried, textHost},
	"hostUsers":                     {Refused, "false is refused: Docker maps users for all containers or none"},
	"hostname":                      {Carried, "of the docker driver's containers"},
	"hostnameOverride":              {Carried, "of the docker driver's containers"},
	"imagePullSecrets.name":         {Approximated, "the client fetches the credentials from the job's Variable; it forgets them when its agent restarts (Nomad issue 28237)"},
	"nodeName":                      {Scheduler, "the virtual node's name"},
	"nodeSelector":                  {Scheduler, "by the virtual node's labels"},
	"os.name":                       {Approximated, "windows is refused"},
	"overhead":                      {Approximated, "added to the first container"},
	"preemptionPolicy":              {Scheduler, "Nomad's own preemption is the operator's choice"},
	"priority":                      {Approximated, "mapped to Nomad's 1..100, by magnitude"},
	"priorityClassName":             {Scheduler, "admission turns it into priority"},
	"readinessGates.conditionType":  {Kept, "in the pod's Ready condition"},
	"resourceClaims.*":              {Refused, "dynamic resource allocation is not there yet"},
	"resources.*":                   {Refused, "resources of the pod as a whole are not there yet"},
	"restartPolicy":                 {Carried, "as Nomad's restart block and a gate"},
	"runtimeClassName":              {Carried, "chooses a row of virtualNodes[].runtimes: driver and configuration"},
	"schedulerName":                 {Scheduler, "whoever binds the pod"},
	"schedulingGates.name":          {Scheduler, "a gated pod is not bound"},
	"serviceAccount":                {Kept, "the old name of serviceAccountName"},
	"serviceAccountName":            {Kept, "tokens are requested for it"},
	"setHostnameAsFQDN":             {Carried, "of the docker driver's containers"},
	"shareProcessNamespace":         {Carried, "with the container that holds the pod's network namespace; refused without one"},
	"subdomain":                     {Carried, "as the pod's name in /etc/hosts"},
	"terminationGracePeriodSeconds": {Approximated, "as the kill timeout, which a Nomad client cuts to its max_kill_timeout"},
	"tolerations.*":                 {Scheduler, "of the virtual node's taints"},
	"topologySpreadConstraints.*":   {Scheduler, "among Nodes; a virtual node is one of them"},
	"workloadRef.*":                 {Approximated, "Nomad places each pod on its own; a note says so"},

	"ephemeralContainers.image":                    {Carried, "of pods whose containers run on the docker driver; a job of its own on the pod's Nomad client, once a container of the pod has started"},
	"ephemeralContainers.lifecycle.*":              {Kept, textForbidden},
	"ephemeralContainers.livenessProbe.*":          {Kept, textForbidden},
	"ephemeralContainers.name":                     {Approximated, "as the job's name and the task's; refused where values of objects are projected and the path of their Variable would be longer than Nomad takes"},
	"ephemeralContainers.ports.*":                  {Kept, textForbidden},
	"ephemeralContainers.readinessProbe.*":         {Kept, textForbidden},
	"ephemeralContainers.resizePolicy.*":           {Kept, textForbidden},
	"ephemeralContainers.resources.*":              {Kept, textForbidden},
	"ephemeralContainers.restartPolicy":            {Kept, textForbidden},
	"ephemeralContainers.restartPolicyRules.*":     {Kept, textForbidden},
	"ephemeralContainers.startupProbe.*":           {Kept, textForbidden},
	"ephemeralContainers.targetContainerName":      {Approximated, "the target's processes are seen; the container ends when the target restarts"},
	"ephemeralContainers.volumeMounts.name":        {Approximated, "refused for a volume that no other container mounts, and for memory that is its container's own"},
	"ephemeralContainers.volumeMounts.subPath":     {Kept, textForbidden},
	"ephemeralContainers.volumeMounts.subPathExpr": {Kept, textForbidden},

	"securityContext.appArmorProfile.localhostProfile": {Carried, textHost},
	"securityContext.appArmorProfile.type":             {Carried, "others than RuntimeDefault " + textHost},
	"securityContext.fsGroup":                          {Approximated, "processes have the group; volumes are given to it by the companion, of claims the directory alone; else projected files only"},
	"securityContext.fsGroupChangePolicy":              {Approximated, "nothing is changed"},
	"securityContext.runAsGroup":                       {Carried, "without runAsUser only with the docker proxy, which looks at the image's user"},
	"securityContext.runAsNonRoot":                     {Approximated, "needs runAsUser, or clients with the docker proxy, which look at the image's user"},
	"securityContext.runAsUser":                        {Carried, "as the task's user"},
	"securityContext.seLinuxChangePolicy":              {Approximated, "volumes are not relabelled"},
	"securityContext.seLinuxOptions.*":                 {Carried, textHost},
	"securityContext.seccompProfile.localhostProfile":  {Carried, textHost + "; read on the Nomad client"},
	"securityContext.seccompProfile.type":              {Approximated, "none given means Docker's default rather than Unconfined; others than RuntimeDefault " + textHost},
	"securityContext.supplementalGroups":               {Carried, "as Docker's additional groups"},
	"securityContext.supplementalGroupsPolicy":         {Approximated, "Strict is refused: Docker adds the image's groups"},
	"securityContext.sysctls.name":                     {Carried, "beyond the safe ones " + textHost},
	"securityContext.sysctls.value":                    {Carried, "as Docker's"},
	"securityContext.windowsOptions.*":                 {Refused, textWindows},

	"containers.args":                                                 {Carried, "with $(NAME) expanded, Secrets and addresses on the client; a VM runs it in the guest, as root, and ends with it"},
	"containers.command":                                              {Carried, "with $(NAME) expanded, Secrets and addresses on the client; a VM runs it in the guest, as root, and ends with it"},
	"containers.env.name":                                             {Approximated, "names that Nomad's environment files do not take go by its secret block, with a note; none may hold '='"},
	"containers.env.value":                                            {Carried, "with $(NAME) expanded; in a VM, of what the pod runs in the guest"},
	"containers.env.valueFrom.configMapKeyRef.key":                    {Carried, "by the job's Variable"},
	"containers.env.valueFrom.configMapKeyRef.name":                   {Carried, "by the job's Variable"},
	"containers.env.valueFrom.configMapKeyRef.optional":               {Carried, ""},
	"containers.env.valueFrom.fieldRef.apiVersion":                    {Carried, "v1 is the only one"},
	"containers.env.valueFrom.fieldRef.fieldPath":                     {Approximated, textCreated + "; podIPs and hostIPs are the IPv4 address alone"},
	"containers.env.valueFrom.fileKeyRef.*":                           {Refused, textNotYet},
	"containers.env.valueFrom.resourceFieldRef.*":                     {Approximated, "what is reserved, where the container has no limit"},
	"containers.env.valueFrom.secretKeyRef.key":                       {Carried, "by the job's Variable"},
	"containers.env.valueFrom.secretKeyRef.name":                      {Carried, "by the job's Variable"},
	"containers.env.valueFrom.secretKeyRef.optional":                  {Carried, ""},
	"containers.envFrom.configMapRef.name":                            {Approximated, "the keys when the pod was created; under names that Nomad's environment files do not take, by its secret block"},
	"containers.envFrom.configMapRef.optional":                        {Carried, ""},
	"containers.envFrom.prefix":                                       {Carried, ""},
	"containers.envFrom.secretRef.name":                               {Approximated, "the keys when the pod was created; under names that Nomad's environment files do not take, by its secret block"},
	"containers.envFrom.secretRef.optional":                           {Carried, ""},
	"containers.image":                                                {Carried, "for VM pods a disk image, or a container image that carries one"},
	"containers.imagePullPolicy":                                      {Approximated, "Never still pulls what the client does not have; tag latest is always pulled"},
	"containers.lifecycle.postStart.exec.*":                           {Approximated, textHook},
	"containers.lifecycle.postStart.httpGet.*":                        {Approximated, textHook},
	"containers.lifecycle.postStart.sleep.seconds":                    {Approximated, textHook},
	"containers.lifecycle.postStart.tcpSocket.*":                      {Approximated, "not run, nor by the kubelet"},
	"containers.lifecycle.preStop.exec.*":                             {Carried, ""},
	"containers.lifecycle.preStop.httpGet.*":                          {Approximated, "needs virtualNodes[].companionImage"},
	"containers.lifecycle.preStop.sleep.seconds":                      {Carried, ""},
	"containers.lifecycle.preStop.tcpSocket.*":                        {Approximated, "not run, nor by the kubelet"},
	"containers.lifecycle.stopSignal":                                 {Carried, "as the kill signal"},
	"containers.livenessProbe.*":                                      {Approximated, textProbe},
	"containers.name":                                                 {Carried, "as the task's name; \"alloc\" is \"alloc-\""},
	"containers.ports.containerPort":                                  {Carried, "reached at the pod's address; forwarded to a VM"},
	"containers.ports.hostIP":                                         {Refused, "Nomad's static ports are a client's, not one of its addresses': leave it out"},
	"containers.ports.hostPort":                                       {Approximated, "TCP and UDP together; " + textHost},
	"containers.ports.name":                                           {Kept, "a name for Services and probes"},
	"containers.ports.protocol":                                       {Approximated, "SCTP with hostPort is refused"},
	"containers.readinessProbe.*":                                     {Approximated, textProbe},
	"containers.resizePolicy.*":                                       {Approximated, "resources are not resized in place"},
	"containers.resources.claims.*":                                   {Refused, "dynamic resource allocation is not there yet"},
	"containers.resources.limits":                                     {Approximated, "cpu is enforced where it equals the request, memory where Nomad's oversubscription is on or it equals the request, ephemeral-storage not; extended resources are Nomad's devices; huge pages are refused"},
	"containers.resources.requests":                                   {Approximated, "cpu in MHz of the pool, at least 1; memory in MiB, rounded up, at least 10"},
	"containers.restartPolicy":                                        {Carried, "as Nomad's restart block and a gate"},
	"containers.restartPolicyRules.*":                                 {Approximated, "by the gate; action RestartAllContainers is refused"},
	"containers.securityContext.allowPrivilegeEscalation":             {Carried, "false as no-new-privileges"},
	"containers.securityContext.appArmorProfile.*":                    {Carried, "others than RuntimeDefault " + textHost},
	"containers.securityContext.capabilities.add":                     {Carried, "beyond Docker's default set " + textHost},
	"containers.securityContext.capabilities.drop":                    {Carried, ""},
	"containers.securityContext.privileged":                           {Carried, textHost},
	"containers.securityContext.procMount":                            {Refused, "other than Default"},
	"containers.securityContext.readOnlyRootFilesystem":               {Carried, "but Nomad's /alloc, /local and /secrets can be written"},
	"containers.securityContext.runAsGroup":                           {Carried, "without runAsUser only with the docker proxy"},
	"containers.securityContext.runAsNonRoot":                         {Approximated, "needs runAsUser, or clients with the docker proxy, which look at the image's user"},
	"containers.securityContext.runAsUser":                            {Carried, "as the task's user"},
	"containers.securityContext.seLinuxOptions.*":                     {Carried, textHost},
	"containers.securityContext.seccompProfile.*":                     {Approximated, "none given means Docker's default rather than Unconfined; others than RuntimeDefault " + textHost},
	"containers.securityContext.windowsOptions.*":                     {Refused, textWindows},
	"containers.startupProbe.*":                                       {Approximated, textProbe},
	"containers.stdin":                                                {Carried, ""},
	"containers.stdinOnce":                                            {Approximated, "standard input stays open"},
	"containers.terminationMessagePath":                               {Carried, "as a file that is read when the container ended; in a VM, of its command"},
	"containers.terminationMessagePolicy":                             {Kept, "where nomad-kubelet reads the message"},
	"containers.tty":                                                  {Carried, ""},
	"containers.volumeDevices.*":                                      {Refused, "block devices are not there on Nomad"},
	"containers.volumeMounts.mountPath":                               {Approximated, "what Nomad mounts itself (/alloc, /local, /secrets; /etc/resolv.conf without the docker proxy) is refused"},
	"containers.volumeMounts.mountPropagation":                        {Carried, "Bidirectional for privileged containers"},
	"containers.volumeMounts.name":                                    {Carried, ""},
	"containers.volumeMounts.readOnly":                                {Carried, ""},
	"containers.volumeMounts.recursiveReadOnly":                       {Approximated, "Enabled is refused; IfPossible is not possible"},
	"containers.volumeMounts.subPath":                                 {Carried, "directories that are not there are made for root"},
	"containers.volumeMounts.subPathExpr":                             {Approximated, "refused where it refers to Secrets, ConfigMaps or addresses"},
	"containers.workingDir":                                           {Carried, "of the command, in a VM"},
	"volumes.awsElasticBlockStore.*":                                  {Refused, textVolume},
	"volumes.azureDisk.*":                                             {Refused, textVolume},
	"volumes.azureFile.*":                                             {Refused, textVolume},
	"volumes.cephfs.*":                                                {Refused, textVolume},
	"volumes.cinder.*":                                                {Refused, textVolume},
	"volumes.configMap.defaultMode":                                   {Carried, ""},
	"volumes.configMap.items.key":                                     {Carried, ""},
	"volumes.configMap.items.mode":                                    {Carried, ""},
	"volumes.configMap.items.path":                                    {Carried, ""},
	"volumes.configMap.name":                                          {Approximated, "all files change at once, keys that come and go included; without virtualNodes[].companionImage one by one, and only those keys that were there"},
	"volumes.configMap.optional":                                      {Approximated, "an object created later appears; not without virtualNodes[].companionImage"},
	"volumes.csi.*":                                                   {Refused, "CSI volumes are not there yet"},
	"volumes.downwardAPI.defaultMode":                                 {Carried, ""},
	"volumes.downwardAPI.items.fieldRef.apiVersion":                   {Carried, "v1 is the only one"},
	"volumes.downwardAPI.items.fieldRef.fieldPath":                    {Carried, "labels and annotations follow the pod"},
	"volumes.downwardAPI.items.mode":                                  {Carried, ""},
	"volumes.downwardAPI.items.path":                                  {Carried, ""},
	"volumes.downwardAPI.items.resourceFieldRef.*":                    {Approximated, "what is reserved, where the container has no limit"},
	"volumes.emptyDir.medium":                                         {Approximated, "Memory is reserved on the client, 32 MiB without sizeLimit, and nothing in it can be executed; without virtualNodes[].companionImage it is the container's own; of a VM it is the guest's"},
	"volumes.emptyDir.sizeLimit":                                      {Approximated, "enforced for Memory, and in a VM, where the disk has that size"},
	"volumes.ephemeral.*":                                             {Approximated, "as volumes.persistentVolumeClaim"},
	"volumes.fc.*":                                                    {Refused, textVolume},
	"volumes.flexVolume.*":                                            {Refused, textVolume},
	"volumes.flocker.*":                                               {Refused, textVolume},
	"volumes.gcePersistentDisk.*":                                     {Refused, textVolume},
	"volumes.gitRepo.*":                                               {Refused, "removed from Kubernetes"},
	"volumes.glusterfs.*":                                             {Refused, textVolume},
	"volumes.hostPath.path":                                           {Carried, "under virtualNodes[].hostAccess.hostPaths; refused elsewhere"},
	"volumes.hostPath.type":                                           {Approximated, "FileOrCreate creates no file; of others only the existence is checked"},
	"volumes.image.*":                                                 {Refused, "image volumes are not there yet"},
	"volumes.iscsi.*":                                                 {Refused, textVolume},
	"volumes.name":                                                    {Carried, ""},
	"volumes.nfs.*":                                                   {Refused, "NFS volumes are not there yet"},
	"volumes.persistentVolumeClaim.claimName":                         {Approximated, "PersistentVolumes of CSI driver " + DriverHostVolume + " are Nomad's host volumes, those of " + DriverCSI + " its CSI volumes (not tried yet); local and hostPath ones go as volumes.hostPath; others are refused. A disk of a VM"},
	"volumes.persistentVolumeClaim.readOnly":                          {Carried, ""},
	"volumes.photonPersistentDisk.*":                                  {Refused, textVolume},
	"volumes.portworxVolume.*":                                        {Refused, textVolume},
	"volumes.projected.defaultMode":                                   {Carried, ""},
	"volumes.projected.sources.clusterTrustBundle.*":                  {Refused, textNotYet},
	"volumes.projected.sources.configMap.*":                           {Approximated, "as volumes.configMap"},
	"volumes.projected.sources.downwardAPI.*":                         {Approximated, "as volumes.downwardAPI"},
	"volumes.projected.sources.podCertificate.*":                      {Refused, textNotYet},
	"volumes.projected.sources.secret.*":                              {Approximated, "as volumes.secret"},
	"volumes.projected.sources.serviceAccountToken.audience":          {Carried, ""},
	"volumes.projected.sources.serviceAccountToken.expirationSeconds": {Carried, "the token is renewed before"},
	"volumes.projected.sources.serviceAccountToken.path":              {Carried, ""},
	"volumes.quobyte.*":                                               {Refused, textVolume},
	"volumes.rbd.*":                                                   {Refused, textVolume},
	"volumes.scaleIO.*":                                               {Refused, textVolume},
	"volumes.secret.defaultMode":                                      {Carried, ""},
	"volumes.secret.items.key":                                        {Carried, ""},
	"volumes.secret.items.mode":                                       {Carried, ""},
	"volumes.secret.items.path":                                       {Carried, ""},
	"volumes.secret.optional":                                         {Approximated, "an object created later appears; not without virtualNodes[].companionImage"},
	"volumes.secret.secretName":                                       {Approximated, "all files change at once, keys that come and go included; without virtualNodes[].companionImage one by one, and only those keys that were there"},
	"volumes.storageos.*":                                             {Refused, textVolume},
	"volumes.vsphereVolume.*":                                         {Refused, textVolume},
}
