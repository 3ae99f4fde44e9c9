#!/bin/bash
# For dracut: bring overhaul-mount-etc into the initial RAM file system. Copy this directory to
# /usr/lib/dracut/modules.d; it is used where it is found.

check() {
  require_binaries /usr/lib/overhaul/overhaul-mount-etc || return 1
}

depends() {
  echo base
}

installkernel() {
  hostonly='' instmods overlay ext4
}

install() {
  inst_multiple mkdir mount sleep
  inst_multiple -o blkid modprobe fsck.ext4
  inst /usr/lib/overhaul/overhaul-mount-etc
  inst_hook pre-pivot 10 "$moddir/overhaul-etc.sh"
}
