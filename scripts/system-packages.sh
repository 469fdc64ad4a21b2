#!/usr/bin/env bash
# The one place that installs system packages. `system-packages.sh` alone serves `make setup`
# (Python's venv, a compiler); `system-packages.sh e2e` adds what a real Kubernetes needs, `bench` what we measure beside.
# Nothing is installed when everything is there; without root it prints the command instead.
set -euo pipefail

packages=(python3-venv gcc libc6-dev make git curl)
if [[ "${1:-}" == "e2e" ]]; then
  packages+=(
    containerd runc                # runs the pods
    containernetworking-plugins    # bridge, host-local, loopback for pod networks
    etcd-server                    # the API server's store
    iptables conntrack             # what kube-proxy programs
    iproute2                       # the network namespace the cluster lives in
    openssl                        # the certificates of the cluster
    buildah debootstrap            # images without a Docker engine
    prometheus                     # promtool, which checks metrics
    chromium                       # the dashboard is looked at in it
  )
fi
if [[ "${1:-}" == "bench" ]]; then
  packages+=(nginx-light)  # the router is measured beside its least_conn
fi

if ! command -v dpkg-query >/dev/null; then
  programs=(python3 gcc make git curl)
  [[ "${1:-}" == "e2e" ]] && programs+=(containerd runc etcd iptables conntrack ip openssl buildah debootstrap promtool chromium)
  [[ "${1:-}" == "bench" ]] && programs+=(nginx)
  for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || { echo "missing: $program (this script installs packages on Debian only)" >&2; exit 1; }
  done
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $EUID -ne 0 ]]; then
  echo "missing system packages; run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing system packages: ${missing[*]}"
# Packages that ship a service must not start it here: the cluster starts its own, in its own namespace.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
