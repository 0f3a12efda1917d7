# The images of deploy/kubernetes, one a target; make image builds all of them from
# static programs. In the first two there is nothing else but the CAs of the building
# machine.

# virtualNodes[].companionImage
FROM scratch AS companion
COPY bin/image/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin/image/companion /companion
ENTRYPOINT ["/companion"]

# deployment.yaml
FROM scratch AS nomad-kubelet
COPY bin/image/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin/image/nomad-kubelet /nomad-kubelet
USER 65532:65532
ENTRYPOINT ["/nomad-kubelet"]

# netbridge/netbridge.yaml. The agent runs nft, and looks by iptables for chains that drop.
FROM debian:13-slim AS netbridge
RUN apt-get update && apt-get install -y --no-install-recommends nftables iptables ca-certificates && rm -rf /var/lib/apt/lists/*
COPY bin/image/netbridge bin/image/netbridge-ipam /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/netbridge"]
