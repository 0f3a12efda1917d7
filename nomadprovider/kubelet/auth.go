package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes"
)

// The kubelet's defaults (pkg/kubelet/apis/config/v1beta1/defaults.go).
const (
	tokenCacheTTL = 2 * time.Minute
	allowCacheTTL = 5 * time.Minute
	denyCacheTTL  = 30 * time.Second
)

// auth lets requests in that a kubelet would let in.
type auth struct {
	node  string
	log   hclog.Logger
	authn authenticator.Request
	authz authorizer.Authorizer
	ca    clientCA
	wrong *failures
}

// clientCA is a source of the CA of client certificates that follows its changes.
type clientCA interface {
	dynamiccertificates.CAContentProvider
	Run(ctx context.Context, workers int)
}

// newClientCA reads the file, or, without one, what every API server publishes
// of the CA that its own clients' certificates are of: that of its certificate
// for kubelets, too, in nearly every cluster.
func newClientCA(kube kubernetes.Interface, file string) (clientCA, error) {
	if file != "" {
		return dynamiccertificates.NewDynamicCAContentFromFile("kubelet-client-ca", file)
	}
	return dynamiccertificates.NewDynamicCAFromConfigMapController("kubelet-client-ca",
		"kube-system", "extension-apiserver-authentication", "client-ca-file", kube)
}

// newAuth builds the delegating authenticator and authorizer. Tokens and client
// certificates work.
func newAuth(kube kubernetes.Interface, node, clientCAFile string, log hclog.Logger) (*auth, error) {
	if kube == nil {
		return nil, errors.New("no API server to ask who may call: refusing to serve")
	}
	a := &auth{node: node, log: log, wrong: newFailures()}
	nc := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient: kube.AuthenticationV1(),
		WebhookRetryBackoff:     options.DefaultAuthWebhookRetryBackoff(),
		CacheTTL:                tokenCacheTTL,
	}
	ca, err := newClientCA(kube, clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	a.ca, nc.ClientCertificateCAContentProvider = ca, ca
	authn, _, err := nc.New()
	if err != nil {
		return nil, fmt.Errorf("set up authentication: %w", err)
	}
	zc := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: kube.AuthorizationV1(),
		AllowCacheTTL:             allowCacheTTL,
		DenyCacheTTL:              denyCacheTTL,
		WebhookRetryBackoff:       options.DefaultAuthWebhookRetryBackoff(),
	}
	authz, err := zc.New()
	if err != nil {
		return nil, fmt.Errorf("set up authorization: %w", err)
	}
	a.authn, a.authz = authn, authz
	return a, nil
}

// start follows the client CA.
func (a *auth) start(ctx context.Context) { go a.ca.Run(ctx, 1) }

// wrap is the gate in front of every route, unknown ones included.
func (a *auth) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// A certificate costs nobody anything: the API server, which comes with one,
		// is not to suffer from what its neighbours do.
		token := r.Header.Get("Authorization") != ""
		if token && a.wrong.of(r).Tokens() < 1 {
			http.Error(w, "too many requests from this address were not authenticated", http.StatusTooManyRequests)
			return
		}
		who, ok, err := a.authn.AuthenticateRequest(r)
		if err != nil || !ok {
			if token {
				a.wrong.of(r).Allow()
			}
			a.log.Debug("a request was not authenticated", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		var refused string
		for _, attrs := range attributes(who.User, r, a.node) {
			decision, _, err := a.authz.Authorize(r.Context(), attrs)
			if err != nil {
				a.log.Error("authorization could not be decided", "user", who.User.GetName(), "path", r.URL.Path, "error", err)
				http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)",
					who.User.GetName(), attrs.GetVerb(), attrs.GetSubresource()), http.StatusInternalServerError)
				return
			}
			if decision == authorizer.DecisionAllow {
				next.ServeHTTP(w, r)
				return
			}
			refused = fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=[%s])",
				who.User.GetName(), attrs.GetVerb(), attrs.GetSubresource())
		}
		a.log.Debug("a request was forbidden", "user", who.User.GetName(), "path", r.URL.Path)
		http.Error(w, refused, http.StatusForbidden)
	})
}

// attributes are those that the kubelet asks for, the finer ones first; any of
// them suffices (pkg/kubelet/server/auth.go, server.go InstallAuthFilter).
func attributes(u user.Info, r *http.Request, node string) []authorizer.Attributes {
	verb := map[string]string{
		http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update",
		http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[r.Method]
	var out []authorizer.Attributes
	for _, sub := range subresources(r.URL.Path) {
		out = append(out, authorizer.AttributesRecord{
			User: u, Verb: verb, APIVersion: "v1", Resource: "nodes", Subresource: sub,
			Name: node, ResourceRequest: true, Path: r.URL.Path,
		})
	}
	return out
}

func subresources(path string) []string {
	switch {
	case under(path, "/pods"), under(path, "/runningpods"):
		return []string{"pods", "proxy"}
	case under(path, "/healthz"):
		return []string{"healthz", "proxy"}
	case under(path, "/configz"):
		return []string{"configz", "proxy"}
	case under(path, "/stats"):
		return []string{"stats"}
	case under(path, "/metrics"):
		return []string{"metrics"}
	case under(path, "/logs"):
		return []string{"log"}
	case under(path, "/checkpoint"):
		return []string{"checkpoint"}
	}
	return []string{"proxy"}
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
