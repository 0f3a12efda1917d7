# nomad-kubelet. `make help` lists what there is to do.

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO ?= go

# Pinned third-party programs, each group in a module of its own under tools/.
# Without symbols they link in half the time.
# What the demo runs:
DEMO_BINS := bin/etcd bin/nomad bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler bin/kubectl
# What the demo of the pod network runs beside that:
NET_BINS := bin/consul bin/kubelet bin/kube-proxy bin/coredns
# What only some tests run:
TEST_BINS := $(NET_BINS) bin/flanneld bin/e2e.test bin/ginkgo bin/agnhost bin/nonewprivs bin/pause bin/metrics-server
# What the conformance suite needs beside the demo's; its control needs a kubelet, too.
SUITE_BINS := bin/e2e.test bin/ginkgo bin/agnhost bin/nonewprivs bin/pause

KUBE := v1.35.4
NOMAD := 1.11.3
CONSUL := 1.21.0
METRICS_SERVER := v0.8.0

# Where several goroutines meet; run once more with the race detector.
CONCURRENT := ./nomadprovider/pods ./nomadprovider/probes ./nomadprovider/prober ./nomadprovider/taskexec ./nomadprovider/allocs ./nomadprovider/projection ./nomadprovider/companion ./nomadprovider/companion/vmimage ./nomadprovider/dockerproxy ./internal/nomadstream ./netbridge/registry ./netbridge/resolver ./netbridge/controller/follow

# A Go build says nothing for minutes; -v names each package as it is compiled,
# which is too much. One line for each hundred is about right.
PROGRESS = 2>&1 | awk '/^[^ \t]+$$/ { if (++n % 100 == 0) { print "    " n " packages compiled"; fflush() } next } /^go: downloading/ { if (++d % 50 == 0) { print "    " d " modules downloaded"; fflush() } next } { print; fflush() }'

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  make bin/NAME           Build one third-party program: $(notdir $(DEMO_BINS) $(TEST_BINS))"

.PHONY: build
build: ## Build bin/nomad-kubelet, bin/companion, bin/netbridge and bin/netbridge-ipam
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -ldflags "-X main.version=$(VERSION)" -o bin/nomad-kubelet ./cmd/nomad-kubelet
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/companion ./cmd/companion
	CGO_ENABLED=0 $(GO) build -ldflags "-X main.version=$(VERSION)" -o bin/netbridge ./cmd/netbridge
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/netbridge-ipam ./cmd/netbridge-ipam

.PHONY: image
image: ## Build the images nomad-kubelet, nomad-kubelet/companion and nomad-kubelet/netbridge with docker
	@mkdir -p bin/image
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/image/nomad-kubelet ./cmd/nomad-kubelet
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/image/companion ./cmd/companion
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/image/netbridge ./cmd/netbridge
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/image/netbridge-ipam ./cmd/netbridge-ipam
	cp /etc/ssl/certs/ca-certificates.crt bin/image/
	docker build -t nomad-kubelet:$(VERSION) -t nomad-kubelet:latest --target nomad-kubelet .
	docker build -t nomad-kubelet/companion:$(VERSION) --target companion .
	docker build -t nomad-kubelet/netbridge:$(VERSION) -t nomad-kubelet/netbridge:latest --target netbridge .

.PHONY: third-party
third-party: $(DEMO_BINS) ## Build the third-party programs of the demo into bin/

# Two at a time: linking, and a few very large packages, keep only one core busy.
.PHONY: programs
programs:
	@$(MAKE) --no-print-directory -j2 $(DEMO_BINS) build

.PHONY: demo
demo: programs $(if $(NET),network-programs) ## Start Kubernetes and Nomad on this machine and run the examples [NET=1: with the pod network and a real node]
	bin/nomad-kubelet dev demo --bin-dir bin $(if $(NET),--pod-network)

.PHONY: network-programs
network-programs:
	@$(MAKE) --no-print-directory -j2 $(NET_BINS)

.PHONY: demo-down
demo-down: build ## Stop the demo and leave nothing behind
	bin/nomad-kubelet dev down

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null | grep . || find . -name '*.go' -not -path './.dev/*')); \
	if [ -n "$$bad" ]; then echo "gofmt -w is due for:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/lint/go.mod staticcheck ./...

.PHONY: test-unit
test-unit: ## Run the unit tests
	$(GO) test $$($(GO) list ./... | grep -v '/test/')
	$(GO) test -race $(CONCURRENT)

.PHONY: test-e2e
test-e2e: programs bin/metrics-server ## Run the tests on real components
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 -timeout 60m ./test/e2e

.PHONY: test-netbridge
test-netbridge: programs network-programs bin/flanneld ## Run the pod network's tests, on hosts that are network namespaces (as root)
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 -timeout 30m ./netbridge/... ./test/netbridge

.PHONY: test-netbridge-short
test-netbridge-short: programs network-programs ## Of these, what carries the packets, and the demo with a real node
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 -timeout 20m ./test/netbridge -run 'TestNetbridge$$|TestDemo$$'

.PHONY: bench
bench: programs ## Measure nomad-kubelet beside Nomad alone (forty minutes; BENCH_FLAGS=-strict fails on missed goals)
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 -timeout 120m ./test/bench -run '^$$' -bench . $(BENCH_FLAGS)

.PHONY: bench-network
bench-network: programs bin/consul bin/kube-proxy ## Measure the pod network beside a hand-made one (as root, ten minutes; beside flannel's after make bin/flanneld)
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -count=1 -timeout 20m ./test/bench/network -run '^$$' -bench . $(BENCH_FLAGS)

# SIG: whose specs, as in [sig-node]; FOCUS, SKIP: regular expressions instead; NODE: virtual, kubelet (the control) or both; PROCS: specs at a time.
SIG ?= node
NODE ?= both
PROCS ?= 6
CONFORMANCE = $(GO) run ./test/conformance -sig=$(SIG) -node=$(NODE) -procs=$(PROCS) $(if $(FOCUS),-focus='$(FOCUS)') $(if $(SKIP),-skip='$(SKIP)')

.PHONY: conformance
conformance: programs suite $(if $(filter network,$(SIG)),network-programs) ## Run the upstream conformance suite on a virtual node and on a kubelet [SIG=node FOCUS= SKIP= NODE=virtual|kubelet PROCS=6]
	$(CONFORMANCE)

.PHONY: conformance-serial
conformance-serial: programs suite ## The same for the serial, slow and disruptive specs
	$(CONFORMANCE) -serial

.PHONY: conformance-short
conformance-short: NODE = virtual
conformance-short: programs suite ## A few specs of it on a virtual node, all of which must pass (four minutes)
	$(CONFORMANCE) -short

.PHONY: conformance-docs
conformance-docs: ## Write docs/conformance.md from the results that are kept
	$(GO) run ./test/conformance -docs

.PHONY: suite
suite:
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/shellenv ./test/conformance/shellenv
	@$(MAKE) --no-print-directory -j2 $(SUITE_BINS) $(if $(filter virtual,$(NODE)),,bin/kubelet)

.PHONY: test
test: lint test-unit test-e2e test-netbridge-short conformance-short ## Run all tests

.PHONY: clean
clean: ## Remove what was built; run make demo-down first
	rm -rf bin .dev

bin/etcd: tools/etcd/go.mod
	@echo "Building etcd (half a minute when nothing is cached)"
	@cd tools/etcd && CGO_ENABLED=0 $(GO) build -v -ldflags "-s -w" -o ../../bin/etcd go.etcd.io/etcd/server/v3 $(PROGRESS)
	@touch $@

bin/nomad: tools/nomad/go.mod
	@echo "Building Nomad $(NOMAD) (about four minutes when nothing is cached)"
	@cd tools/nomad && $(GO) build -v -ldflags "-s -w -X github.com/hashicorp/nomad/version.Version=$(NOMAD) -X github.com/hashicorp/nomad/version.VersionPrerelease=" \
		-o ../../bin/nomad github.com/hashicorp/nomad $(PROGRESS)
	@touch $@

bin/consul: tools/consul/go.mod
	@echo "Building Consul $(CONSUL) (about four minutes when nothing is cached)"
	@cd tools/consul && $(GO) build -v -ldflags "-X github.com/hashicorp/consul/version.GitDescribe=$(CONSUL)" \
		-o ../../bin/consul github.com/hashicorp/consul $(PROGRESS)
	@touch $@

KUBE_PARTS := $(subst ., ,$(KUBE:v%=%))
KUBE_LDFLAGS := $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,\
	-X $p.gitVersion=$(KUBE) -X $p.gitMajor=$(word 1,$(KUBE_PARTS)) -X $p.gitMinor=$(word 2,$(KUBE_PARTS)) -X $p.gitTreeState=clean)

# In one go, so that what they share is compiled once and links overlap.
KUBE_DEMO := kube-apiserver kube-controller-manager kube-scheduler kubectl
$(KUBE_DEMO:%=bin/%) &: tools/kubernetes/go.mod
	@echo "Building $(KUBE_DEMO) $(KUBE) (about five minutes when nothing is cached)"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -v -ldflags "-s -w $(KUBE_LDFLAGS)" -o ../../bin/ $(KUBE_DEMO:%=k8s.io/kubernetes/cmd/%) $(PROGRESS)
	@touch $(KUBE_DEMO:%=bin/%)

bin/kubelet bin/kube-proxy: tools/kubernetes/go.mod
	@echo "Building $(@F) $(KUBE) (two minutes when nothing is cached)"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -v -ldflags "-s -w $(KUBE_LDFLAGS)" -o ../../$@ k8s.io/kubernetes/cmd/$(@F) $(PROGRESS)
	@touch $@

bin/metrics-server: tools/metrics-server/go.mod
	@echo "Building metrics-server $(METRICS_SERVER) (about four minutes when nothing is cached)"
	@cd tools/metrics-server && CGO_ENABLED=0 $(GO) build -v -ldflags "-s -w -X k8s.io/client-go/pkg/version.gitVersion=$(METRICS_SERVER)" \
		-o ../../bin/metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server $(PROGRESS)
	@touch $@

bin/coredns: tools/coredns/go.mod tools/coredns/main.go
	@echo "Building CoreDNS (two minutes when nothing is cached)"
	@cd tools/coredns && CGO_ENABLED=0 $(GO) build -trimpath -v -ldflags "-s -w" -o ../../bin/coredns . $(PROGRESS)
	@touch $@

# Its UDP backend needs cgo. Not of the latest release, one of whose cloud backends the module proxy does not serve.
bin/flanneld: tools/flannel/go.mod
	@echo "Building flannel (five minutes when nothing is cached)"
	@cd tools/flannel && $(GO) build -v -ldflags "-s -w" -o ../../$@ github.com/flannel-io/flannel $(PROGRESS)
	@touch $@

bin/agnhost: tools/kubernetes/go.mod
	@echo "Building agnhost"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -v -o ../../$@ k8s.io/kubernetes/test/images/agnhost $(PROGRESS)
	@touch $@

bin/ginkgo: tools/kubernetes/go.mod
	@echo "Building ginkgo"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -v -o ../../$@ github.com/onsi/ginkgo/v2/ginkgo $(PROGRESS)
	@touch $@

bin/e2e.test: tools/kubernetes/go.mod
	@echo "Building e2e.test $(KUBE) (about three minutes)"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) test -c -vet=off -v -ldflags "-s -w $(KUBE_LDFLAGS)" -o ../../$@ k8s.io/kubernetes/test/e2e $(PROGRESS)
	@touch $@

bin/nonewprivs: tools/kubernetes/go.mod
	@echo "Building nonewprivs"
	@cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -o ../../$@ k8s.io/kubernetes/test/images/nonewprivs
	@touch $@

# The one program of the suite's images that is not Go.
bin/pause: tools/kubernetes/go.mod
	@echo "Building pause"
	@mkdir -p bin
	@$(CC) -Os -static -DVERSION=3.10.1 -o $@ "$$(cd tools/kubernetes && $(GO) list -mod=mod -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c"
	@touch $@
