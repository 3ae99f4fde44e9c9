# Two commands do all the set-up: `make demo` runs the main job on real input, `make test` runs every check.

DEMO_PACKAGES = mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs systemd-nspawn=systemd-container nsenter=util-linux
# PROGRAM=PACKAGE: the package is installed when the program is not there.
TEST_PACKAGES = $(DEMO_PACKAGES) gcc=gcc make=make casync=casync dbus-daemon=dbus-daemon grub-editenv=grub-common \
    grub-emu=grub-emu chromium=chromium nginx=nginx-light apache2=apache2-bin initdb=postgresql zstd=zstd lz4=lz4 \
    xz=xz-utils cpio=cpio mkfs.erofs=erofs-utils mksquashfs=squashfs-tools mkfs.btrfs=btrfs-progs bsdtar=libarchive-tools \
    sfdisk=fdisk rauc=rauc ostree=ostree openssl=openssl gpg=gnupg gpgv=gpgv bwrap=bubblewrap newuidmap=uidmap \
    signify-openbsd=signify-openbsd gdbus=libglib2.0-bin dpkg-buildpackage=dpkg-dev dh=debhelper fakeroot=fakeroot \
    python3-config=python3-dev ruby=ruby mcopy=mtools softhsm2-util=softhsm2 pkcs11-tool=opensc \
    ansible-playbook=ansible-core docker-compose=docker-compose nft=nftables ip=iproute2 grub-mkstandalone=grub-common \
    qemu-system-x86_64=qemu-system-x86 strip=binutils depmod=kmod /bin/busybox=busybox-static \
    /usr/share/OVMF/OVMF_CODE_4M.fd=ovmf /usr/lib/grub/x86_64-efi/normal.mod=grub-efi-amd64-bin \
    /usr/lib/systemd/boot/efi/systemd-bootx64.efi=systemd-boot-efi strace=strace fw_setenv=libubootenv-tool \
    mkimage=u-boot-tools /usr/lib/u-boot/qemu-x86/u-boot.rom=u-boot-qemu mkinitramfs=initramfs-tools-core \
    dracut=dracut-core shellcheck=shellcheck /usr/share/zoneinfo/Europe/Berlin=tzdata
BENCH_PACKAGES = $(TEST_PACKAGES) xdelta3=xdelta3 wrk=wrk

PYTHON = .venv/bin/python

.PHONY: demo test crash check guests bench data deb clean

## demo: publish two real Debian images, update a virtual device, roll back a bad release
demo:
	@.ci/setup server $(DEMO_PACKAGES)
	@$(PYTHON) -m examples.demo

## test: install what the tests need, then run every check and every test
test:
	@.ci/setup test $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup

## crash: cut the power of devices and publishers in every recorded state (hours; a part of it is in `make test`)
crash:
	@.ci/setup test $(TEST_PACKAGES)
	OVERHAUL_POWER_CUTS=all $(PYTHON) -m pytest -q -s -n 0 tests/crash/test_power_cuts.py tests/crash/test_power_cuts_publish.py

## check: formatting, lint, types, floors of the house
check:
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

## guests: cut the power all over updates in virtual machines, with each boot loader (half an hour to an hour)
guests:
	@.ci/setup test $(TEST_PACKAGES)
	$(PYTHON) -m pytest -p no:randomly tests/guests/whole.py

## bench: compare with the peers in the same run; make the data first with `make data DATA=dir`
bench:
	@.ci/setup test $(BENCH_PACKAGES)
	$(PYTHON) -m benchmarks $(DATA)

## data: make the standard benchmark pair P1 from Debian (about 6 GB, 5 to 15 minutes)
data:
	@.ci/setup test $(BENCH_PACKAGES)
	benchmarks/make-data.sh $(DATA)

## deb: build the Debian packages of the SteamOS client and server into dist/
deb:
	@.ci/setup test dpkg-buildpackage=dpkg-dev dh=debhelper fakeroot=fakeroot python3-config=python3-dev
	deploy/debian/build.sh dist

clean:
	rm -rf .venv demo-work build dist .mypy_cache .ruff_cache .pytest_cache
