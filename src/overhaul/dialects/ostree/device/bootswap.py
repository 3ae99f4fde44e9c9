"""Making a list of deployments what boots: everything is written beside what is in use, then one link changes.

    1  ostree/boot.B'.S'/…            links to the deployments
    2  ostree/boot.B' -> boot.B'.S'
    3  boot/ostree/OS-BOOTCSUM/…      kernels that are not there yet
    4  boot/loader.B'/entries/…       entries, and refs that keep the deployments' objects
    5  everything synced
    6  boot/loader -> loader.B'       the switch
    7  synced again; then `clean_up` removes what nothing uses any more

B' is the other one of 0 and 1. A device that loses power before step 6 boots what it booted, after it the new list.
"""

import filecmp
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.bootentry import BootEntry, BootLink, with_link
from overhaul.dialects.ostree.device.immutable import set_immutable
from overhaul.dialects.ostree.device.kernel import KernelLayout, find_kernel
from overhaul.dialects.ostree.device.staging import NoSpaceError, free_space_bytes
from overhaul.dialects.ostree.device.sysroot import Deployment, Sysroot, SysrootError
from overhaul.host.files import replace_bytes, replacing, sync_file_system

_DEPLOYMENT = re.compile(r"([0-9a-f]{64}\.\d+)(\.origin)?\Z")
_BOOT_DIRECTORY = re.compile(r"boot\.[01](\.[01])?\Z")
_PREPARE_ROOT = "usr/lib/ostree/ostree-prepare-root"
#: What entries, links and directories take at most.
_SLACK_BYTES = 1 << 20
#: What to do about a device that only the `ostree` program can serve.
USE_OSTREE = 'set backend = "ostree" in /etc/overhaul/ostree-update.toml'
#: Configurations of boot loaders that do not read the entries themselves.
_OTHER_LOADERS = ("grub2/grub.cfg", "syslinux/syslinux.cfg", "loader/uEnv.txt", "loader/grub.cfg")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A deployment with what its entry must say."""

    deployment: Deployment
    #: `NAME [VERSION]`, without its place in the list.
    title: str
    arguments: tuple[str, ...]
    #: Attempts the boot loader may make; None: it does not count.
    attempts: int | None = None


def check_boot_loader(sysroot: Sysroot, repository: BareRepository) -> None:
    """Refuse a device whose boot loader needs more than entries.

    Raises:
        SysrootError: Its configuration has to be written by other means.
    """
    sysroot.boot_version()
    if repository.config.get("sysroot", "bootloader") == "none":
        return
    for name in _OTHER_LOADERS:
        path = sysroot.boot / name
        if path.is_symlink():
            raise SysrootError(
                path=path,
                reason=f"this boot loader does not read entries; {USE_OSTREE}, or sysroot.bootloader=none in the "
                "repository's config when it does.",
            )


def write_list(sysroot: Sysroot, repository: BareRepository, listed: Sequence[Listed]) -> None:
    """Make `listed` what boots, the first being the default.

    Raises:
        NoSpaceError: /boot has no room for a kernel; nothing changed.
    """
    version = 1 - sysroot.boot_version()
    layouts = [find_kernel(sysroot.directory(one.deployment)) for one in listed]
    _check_room(sysroot, listed, layouts)
    subversion = _other_subversion(sysroot, version)
    links = _links(listed, version)
    _write_links(sysroot, listed, links, version=version, subversion=subversion)
    for one, layout in zip(listed, layouts, strict=True):
        _install_kernel(sysroot, one.deployment, layout)
    entries = [
        _entry(one, layout, link, place=place, count=len(listed))
        for place, (one, layout, link) in enumerate(zip(listed, layouts, links, strict=True))
    ]
    _write_entries(sysroot, entries, listed, version=version)
    _write_refs(repository, listed, version=version, subversion=subversion)
    sync_file_system(sysroot.path / "ostree")
    sync_file_system(sysroot.boot)
    _swap_link(sysroot.boot / "loader", f"loader.{version}")
    sync_file_system(sysroot.boot)


def clean_up(sysroot: Sysroot, repository: BareRepository) -> None:
    """Remove what no entry in use leads to: trees, links, kernels, refs. Objects are `prune`'s."""
    version = sysroot.boot_version()
    deployments = sysroot.deployments()
    if not deployments:
        # A boot partition that is not mounted looks like this, and what runs would go.
        return
    in_use = {(one.osname, one.name) for one in deployments}
    for osname in sysroot.osnames():
        home = sysroot.deployments_directory(osname)
        for path in sorted(home.iterdir()) if home.is_dir() else ():
            match = _DEPLOYMENT.match(path.name)
            if match and (osname, match[1]) not in in_use:
                _remove_deployment(path)
    _clean_links(sysroot, version)
    _remove(sysroot.boot / f"loader.{1 - version}")
    kernels = {f"{one.osname}-{one.boot_checksum}" for one in deployments}
    place = sysroot.boot / "ostree"
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.name not in kernels:
            _remove(path)
    _clean_refs(repository, sysroot, version)
    repository.sweep()


def _check_room(sysroot: Sysroot, listed: Sequence[Listed], layouts: Sequence[KernelLayout]) -> None:
    needed = _SLACK_BYTES
    counted = set()
    shares_disk = sysroot.boot.stat().st_dev == (sysroot.path / "ostree").stat().st_dev
    for one, layout in zip(listed, layouts, strict=True):
        place = _kernel_directory(sysroot, one.deployment.osname, layout)
        if not place.exists() and place not in counted and not shares_disk:
            needed += layout.size_bytes()
            counted.add(place)
    free = free_space_bytes(sysroot.boot)
    if free < needed:
        raise NoSpaceError(path=sysroot.boot, needed_bytes=needed, free_bytes=free)


def _other_subversion(sysroot: Sysroot, version: int) -> int:
    try:
        return 1 - int(os.readlink(sysroot.path / f"ostree/boot.{version}")[-1])
    except (OSError, ValueError):
        return 1


def _links(listed: Sequence[Listed], version: int) -> list[BootLink]:
    serials: Counter[tuple[str, str]] = Counter()
    links = []
    for one in listed:
        shared = (one.deployment.osname, one.deployment.boot_checksum)
        links.append(BootLink(boot_version=version, osname=shared[0], boot_checksum=shared[1], serial=serials[shared]))
        serials[shared] += 1
    return links


def _write_links(
    sysroot: Sysroot, listed: Sequence[Listed], links: Sequence[BootLink], *, version: int, subversion: int
) -> None:
    name = f"boot.{version}.{subversion}"
    base = sysroot.path / "ostree" / name
    _remove(base)
    base.mkdir()
    for one, link in zip(listed, links, strict=True):
        place = base / link.osname / link.boot_checksum / str(link.serial)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(f"../../../deploy/{link.osname}/deploy/{one.deployment.name}")
    _swap_link(sysroot.path / f"ostree/boot.{version}", name)


def _kernel_directory(sysroot: Sysroot, osname: str, layout: KernelLayout) -> Path:
    return sysroot.boot / "ostree" / f"{osname}-{layout.boot_checksum}"


def _install_kernel(sysroot: Sysroot, deployment: Deployment, layout: KernelLayout) -> None:
    directory = _kernel_directory(sysroot, deployment.osname, layout)
    directory.mkdir(parents=True, exist_ok=True)
    for name, source in layout.files():
        place = directory / name
        if place.is_file() and filecmp.cmp(source, place, shallow=False):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:  # /boot is a file system of its own, or has no links
            with replacing(place) as stream, source.open("rb") as reader:
                shutil.copyfileobj(reader, stream, 1 << 20)
        else:
            part.replace(place)


def _entry(one: Listed, layout: KernelLayout, link: BootLink, *, place: int, count: int) -> BootEntry:
    folder = f"/ostree/{link.osname}-{link.boot_checksum}"
    arguments = tuple(word for word in one.arguments if not word.startswith("ostree="))
    if layout.initramfs is None:
        # Nothing prepares the root before the kernel starts its first program, so that program does it.
        arguments = tuple(word for word in arguments if not word.startswith("init="))
        arguments = (*arguments, f"init={link}/{_PREPARE_ROOT}")
    entry = BootEntry(
        title=f"{one.title} (ostree:{place})",
        version=count - place,
        arguments=arguments,
        linux=f"{folder}/{layout.kernel[0]}",
        initrd=f"{folder}/{layout.initramfs[0]}" if layout.initramfs else "",
        devicetree=f"{folder}/{layout.devicetree[0]}" if layout.devicetree else "",
        fdtdir=f"{folder}/{layout.fdtdir[0]}" if layout.fdtdir else "",
        others=one.deployment.entry.others,
        attempts_left=one.attempts,
    )
    return with_link(entry, link)


def _write_entries(sysroot: Sysroot, entries: Iterable[BootEntry], listed: Sequence[Listed], *, version: int) -> None:
    base = sysroot.boot / f"loader.{version}"
    _remove(base)
    (base / "entries").mkdir(parents=True)
    for entry, one in zip(entries, listed, strict=True):
        counter = "" if entry.attempts_left is None else f"+{entry.attempts_left}"
        name = f"ostree-{entry.version}-{one.deployment.osname}{counter}.conf"
        replace_bytes(base / "entries" / name, entry.text().encode())
    # What else the owner keeps beside the entries follows them.
    old = sysroot.boot / "loader"
    for path in sorted(old.iterdir()) if old.is_dir() else ():
        if path.name != "entries" and path.is_file() and not path.is_symlink():
            shutil.copy2(path, base / path.name)
    for path in sorted((old / "entries").iterdir()) if (old / "entries").is_dir() else ():
        if not path.name.startswith("ostree-"):
            shutil.copy2(path, base / "entries" / path.name)


def _write_refs(repository: BareRepository, listed: Sequence[Listed], *, version: int, subversion: int) -> None:
    base = repository.path / f"refs/heads/ostree/{version}/{subversion}"
    _remove(base)
    for number, commit in enumerate(dict.fromkeys(one.deployment.commit for one in listed)):
        repository.set_ref("", f"ostree/{version}/{subversion}/{number}", commit)


def _clean_links(sysroot: Sysroot, version: int) -> None:
    base = sysroot.path / "ostree"
    kept = {f"boot.{version}"}
    if (base / f"boot.{version}").is_symlink():
        kept.add(os.readlink(base / f"boot.{version}"))
    for path in sorted(base.iterdir()):
        if _BOOT_DIRECTORY.match(path.name) and path.name not in kept:
            _remove(path)


def _clean_refs(repository: BareRepository, sysroot: Sysroot, version: int) -> None:
    try:
        kept = os.readlink(sysroot.path / f"ostree/boot.{version}").removeprefix("boot.").replace(".", "/")
    except OSError:
        return
    base = repository.path / "refs/heads/ostree"
    for path in sorted(base.glob("[01]/[01]")):
        if path.relative_to(base).as_posix() != kept:
            _remove(path)


def _remove_deployment(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        set_immutable(path, immutable=False)
    _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _swap_link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
