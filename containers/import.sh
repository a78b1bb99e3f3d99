#!/bin/bash
# Imports a container image once, into a file that all jobs of a Slurm cluster with pyxis use:
#   containers/import.sh IMAGE FILE.sqsh
# IMAGE is a registry's name as for docker pull, such as nvcr.io/nvidia/nemo:26.02;
# dockerd://NAME or podman://NAME for an image that was built on this machine; or a URI for enroot.
# FILE must lie in a folder that all nodes see, and is never overwritten.
#
# Environment: ENROOT_TEMP_PATH and ENROOT_CACHE_PATH, by default below the folder of FILE, because
# /tmp of a login node is seldom large enough; FREE_GB, space to ask for there (80). A registry's
# password is read by enroot from its own file of credentials; it does not belong on a command line.
set -euo pipefail

refuse() {
    echo "error: $1" >&2
    exit 2
}

[ $# = 2 ] || refuse "usage: $0 IMAGE FILE.sqsh"
image=$1
target=$2
free_gb=${FREE_GB:-80}

[[ $image =~ ^[A-Za-z0-9] && ! $image =~ [[:space:]] ]] || refuse "'$image' names no image"
[[ ! ${image#*://} =~ ^[^@/]*:[^@/]*@ ]] ||
    refuse "IMAGE holds a password, which others would see: put it into enroot's file of credentials"
[[ $free_gb =~ ^[0-9]+$ ]] || refuse "FREE_GB=$free_gb is not a number of GB"
[[ $target == *.sqsh ]] || refuse "$target does not end in .sqsh"
if [ -e "$target" ] || [ -L "$target" ]; then
    refuse "$target is there already; remove it first, or choose another name"
fi
folder=$(dirname -- "$target")
[ -d "$folder" ] || refuse "there is no folder $folder"
[ -w "$folder" ] || refuse "$folder cannot be written to"
folder=$(cd -- "$folder" && pwd)
target=$folder/$(basename -- "$target")

free=$(df --output=avail -B1G -- "$folder" | tail -n 1)
[ "$free" -ge "$free_gb" ] ||
    refuse "$folder has ${free// /} GB free, and $free_gb may be needed; FREE_GB says how many"
command -v enroot > /dev/null ||
    refuse "enroot is not installed here; on many clusters it is on the compute nodes only: srun $0 ..."

case $image in
    *://*) uri=$image ;;
    # enroot wants # behind the registry, which is what has a dot or a port before the first slash.
    *[.:]*/*)
        registry=${image%%/*}
        if [[ $registry == *[.:]* ]]; then uri=docker://$registry#${image#*/}; else uri=docker://$image; fi
        ;;
    *) uri=docker://$image ;;
esac

# Also keeps a second import of the same file away.
work=$folder/.$(basename -- "$target").importing
mkdir -- "$work" 2> /dev/null ||
    refuse "$work is there: another import runs, or was killed; in that case remove it"
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export ENROOT_TEMP_PATH=${ENROOT_TEMP_PATH:-$work/tmp} ENROOT_CACHE_PATH=${ENROOT_CACHE_PATH:-$work/cache}
mkdir -p -- "$ENROOT_TEMP_PATH" "$ENROOT_CACHE_PATH"

echo "importing $uri"
if ! enroot import --output "$work/image.sqsh" -- "$uri"; then
    echo "error: enroot could not import $uri; nothing was written to $target" >&2
    exit 1
fi
[ -s "$work/image.sqsh" ] || {
    echo "error: enroot wrote nothing" >&2
    exit 1
}
sync -- "$work/image.sqsh"
mv --no-clobber -- "$work/image.sqsh" "$target"
[ ! -e "$work/image.sqsh" ] || refuse "$target has come to be in the meantime; it was left alone"
echo "wrote $target; in the cluster's profile: container: $target"
