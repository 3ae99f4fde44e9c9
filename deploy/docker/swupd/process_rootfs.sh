#!/bin/sh
# Extract a root file system and process it in one step: process_rootfs.sh IMAGE VERSION [PARTITION]
# IMAGE is a tar, a file system or (with PARTITION) a disk image below the current directory or $STORAGE/image.
# The key lies in /keys/swupd.key and its certificate in /keys/swupd.pem; without them nothing is signed, which
# has to be asked for with UNSIGNED=1.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: process_rootfs.sh IMAGE VERSION [PARTITION]" >&2
    exit 2
fi
image=$1
version=$2
partition=${3:-}
storage=${OVERHAUL_SWUPD_STORAGE:-/storage}
keys=${KEYS:-/keys}

if [ ! -e "$image" ] && [ -e "$storage/image/$image" ]; then
    image=$storage/image/$image
fi
if [ "${UNSIGNED:-}" = 1 ]; then
    set -- --unsigned
else
    set -- --key "$keys/swupd.key" --certificate "$keys/swupd.pem"
fi
if [ ! -d "$storage/image/$version/os-core" ]; then
    # A run that was interrupted has extracted already, or nothing at all.
    overhaul swupd extract-rootfs "$image" "$storage" "$version" $partition
fi
exec overhaul swupd process "$version" --storage "$storage" "$@"
