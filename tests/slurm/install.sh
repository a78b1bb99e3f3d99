#!/bin/sh
# Installs Debian's Slurm for the tests, where that is possible; elsewhere its tests are skipped.
set -u
programs="slurmctld slurmd munged slurmdbd mariadbd gcc mksquashfs"
missing=$(PATH=$PATH:/usr/sbin:/sbin; for p in $programs; do command -v "$p" >/dev/null || printf '%s ' "$p"; done)
[ -e /usr/include/slurm/spank.h ] || missing="$missing slurm/spank.h"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests of Slurm will be skipped: no $missing and no right to install it" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q &&
    apt-get install -y -q --no-install-recommends slurm-wlm slurmdbd munge mariadb-server \
        libslurm-dev gcc libc6-dev squashfs-tools ||
    echo "tests of Slurm will be skipped: it could not be installed" >&2
exit 0
