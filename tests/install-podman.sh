#!/bin/sh
# Installs Debian's podman for the tests, where that is possible; elsewhere those of Docker are
# skipped: podman serves Docker's interface.
set -u
programs="podman runc conmon"
missing=$(PATH=$PATH:/usr/sbin:/sbin; for p in $programs; do command -v "$p" >/dev/null || printf '%s ' "$p"; done)
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests of Docker will be skipped: no $missing and no right to install it" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q &&
    apt-get install -y -q --no-install-recommends podman runc conmon netavark ||
    echo "tests of Docker will be skipped: podman could not be installed" >&2
exit 0
