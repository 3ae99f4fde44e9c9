#!/bin/sh
# Make the standard benchmark pair P1: the same 426 Debian packages twice, as first released and as updated today.
# usage: benchmarks/make-data.sh DIRECTORY        (root; about 6 GB; what exists already is kept)
#
# Result: p1-old.ext4 and p1-new.ext4 (2 GiB, 4 KiB blocks, no journal, fixed ids), their trees p1-old/ and p1-new/,
# their package lists, and sha256sums. The archive moves with time: keep the lists and sums beside any figure.
set -eu
[ $# = 1 ] || { sed -n '2,7p' "$0"; exit 2; }
out=$1
mkdir -p "$out"
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000 LC_ALL=C TZ=UTC
. /etc/os-release
suite=$VERSION_CODENAME

mirror_of() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' | awk -v s="$1" '$1 == s { print $2; exit }'
}
main=$(mirror_of "$suite")
security=$(mirror_of "$suite-security")
[ -n "$main" ] || { echo "apt has no package source for $suite; run apt-get update." >&2; exit 1; }

packages=systemd-sysv,udev,dbus,linux-image-cloud-amd64,python3,python3-venv,perl,vim,gcc,g++,make,gdb,git,curl,wget
packages=$packages,openssh-server,openssh-client,sudo,less,man-db,manpages,manpages-dev,nginx-light,sqlite3,tmux,htop
packages=$packages,rsync,strace,iproute2,iputils-ping,iptables,nftables,ca-certificates,gnupg,locales,tzdata,cron
packages=$packages,logrotate,rsyslog,bash-completion,cmake,jq,file,unzip,xz-utils,zstd,e2fsprogs,btrfs-progs,parted
packages=$packages,lsof,tcpdump,bind9-dnsutils,openssl,libpython3-dev,libssl-dev,postgresql-client,isc-dhcp-client
packages=$packages,network-manager,apparmor,python3-yaml,python3-requests,python3-cryptography,imagemagick
packages=$packages,ghostscript,ncurses-term

make_tree() { # NAME SOURCE-LINE...
    name=$1
    shift
    [ ! -s "$out/$name.ext4" ] || return 0
    printf '%s\n' "$@" | mmdebstrap --variant=minbase --include="$packages" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/* "$1"/etc/ssh/ssh_host_* "$1"/var/lib/dbus/machine-id' \
        --customize-hook='rm -f "$1"/etc/resolv.conf "$1"/etc/hostname; : > "$1"/etc/machine-id' \
        --customize-hook='find "$1"/usr/lib/python3* -name "*.pyc" -delete' \
        "$suite" "$out/$name.tar" -
    tar -xOf "$out/$name.tar" ./var/lib/dpkg/status |
        awk '/^Package:/ { p = $2 } /^Version:/ { v = $2 } /^$/ { print p, v }' | sort >"$out/$name.packages"
    rm -rf "${out:?}/$name"
    mkdir "$out/$name"
    tar -C "$out/$name" --numeric-owner --xattrs --xattrs-include='*' -xpf "$out/$name.tar"
    rm "$out/$name.tar"
    # Both sides share their ids, so that only content differs.
    id=11111111-2222-3333-4444-555555555555
    truncate -s 2G "$out/$name.partial"
    mkfs.ext4 -q -F -b 4096 -L root -U $id -E hash_seed=$id,lazy_itable_init=0,root_owner=0:0 \
        -O ^has_journal -m 0 -d "$out/$name" "$out/$name.partial"
    mv "$out/$name.partial" "$out/$name.ext4"
}

make_tree p1-old "deb $main $suite main"
make_tree p1-new "deb $main $suite main" "deb $main $suite-updates main" "deb ${security:-$main} $suite-security main"
(cd "$out" && sha256sum p1-*.ext4 >sha256sums)
