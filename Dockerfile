# The image of deploy/kubernetes/deployment.yaml, and with --target companion the
# one of virtualNodes[].companionImage. make image builds both from static
# programs; there is nothing else in them but the CAs of the building machine.
FROM scratch AS companion
COPY bin/image/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin/image/companion /companion
ENTRYPOINT ["/companion"]

FROM scratch
COPY bin/image/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin/image/nomad-kubelet /nomad-kubelet
USER 65532:65532
ENTRYPOINT ["/nomad-kubelet"]
