"""Turning a finished root file system into a tree that OSTree can deploy: a plan first, which people can read.

The plan is made of a tree's entries alone (and the content of boot files, whose digests become names); nothing is
touched. It is a list of changes and the entries that result, which are committed as they are, or written out as a
tree by `write_out`. Its steps, in order:

    special    device nodes, pipes and sockets go: OSTree has no objects for them
    usr merge  bin, sbin, lib* that are directories move into usr and become links
    kernel     refkit: boot/EFI/BOOT/boot*.efi, which holds kernel, initramfs and command line, becomes
               usr/lib/ostree-boot/NAME.ext-DIGEST (and that of boot/EFI_internal_storage NAME.int-DIGEST), with an
               empty vmlinuz-DIGEST and initramfs-DIGEST beside it, because OSTree insists on them;
               else boot/vmlinuz-VERSION and its initramfs become usr/lib/modules/VERSION/{vmlinuz,initramfs.img}
    release    etc/os-release becomes usr/lib/os-release: the boot entry is named after it
    etc        becomes usr/etc, the defaults that each deployment's etc is merged from
    places     directories of state become mount points or links, what they held is dropped

A tree that is prepared already comes out as it went in, with an empty list of changes.
"""

import hashlib
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overhaul.content.tree import TreeEntry
from overhaul.dialects.ostree.commit import CommitEntry, entries_of
from overhaul.errors import InputError

#: refkit's own: boot, var and home are mounted there, each from outside the deployment.
REFKIT_PLACES = {
    "boot": "",
    "dev": "",
    "home": "",
    "mnt": "var/mnt",
    "proc": "",
    "run": "",
    "sys": "",
    "tmp": "sysroot/tmp",
    "var": "",
}
#: What OSTree's manual recommends: everything that is kept lies in var.
GENERIC_PLACES = {
    **REFKIT_PLACES,
    "home": "var/home",
    "opt": "var/opt",
    "root": "var/roothome",
    "srv": "var/srv",
    "usr/local": "../var/usrlocal",
}
LAYOUTS = {"refkit": REFKIT_PLACES, "generic": GENERIC_PLACES}
#: Links of the usr merge.
_MERGED = re.compile(rb"bin|sbin|lib[a-z0-9]*")
_UEFI_APP = re.compile(rb"boot/EFI/BOOT/(boot[^/]*\.efi)")
_INTERNAL_APP = "boot/EFI_internal_storage/BOOT/"
_KERNEL = re.compile(rb"boot/(?:vmlinuz|vmlinux|bzImage|zImage|Image)-([^/]+)")
_PLACED_KERNEL = re.compile(rb"usr/lib/modules/[^/]+/vmlinuz|usr/lib/ostree-boot/vmlinuz-.*")
_INITRAMFS = ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initramfs-{}", "boot/initrd-{}")
_DIRECTORY_MODE = stat.S_IFDIR | 0o755
_LINK_MODE = stat.S_IFLNK | 0o777
#: Directories whose content is state or belongs to the kernel: what they hold is no part of the system.
_VOLATILE = frozenset((b"boot", b"dev", b"mnt", b"proc", b"run", b"sys", b"tmp", b"var", b"home", b"root"))


class UnpreparableTreeError(InputError):
    """A root file system that no deployment can be made of."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The tree cannot be prepared for OSTree: {reason}")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing a plan does."""

    step: str
    #: Of the tree as it is.
    path: str
    #: What becomes of it, for people.
    what: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What preparing does to a tree, and what comes of it."""

    changes: tuple[Change, ...]
    #: By bytewise path.
    entries: tuple[CommitEntry, ...]


def plan_tree(
    root: Path, entries: Iterable[TreeEntry], *, places: Mapping[str, str], needs_kernel: bool = True
) -> Plan:
    """Return how the tree in `root` becomes one that can be deployed; `places` maps directories to links, or to ''.

    Raises:
        UnpreparableTreeError: It has no kernel (unless that is fine), no os-release, or contradicts itself.
    """
    planner = _Planner(root, entries_of(entries))
    planner.drop_special_files()
    planner.merge_usr()
    if needs_kernel:
        planner.place_kernel()
    planner.place_os_release()
    planner.move_etc()
    planner.make_places(places)
    return planner.plan()


class _Planner:
    def __init__(self, root: Path, entries: Sequence[CommitEntry]) -> None:
        self._root = root
        self._entries = {entry.path: entry for entry in entries}
        self._changes: list[Change] = []

    def plan(self) -> Plan:
        return Plan(tuple(self._changes), tuple(self._entries[path] for path in sorted(self._entries)))

    def drop_special_files(self) -> None:
        kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        for path in [path for path, entry in self._entries.items() if stat.S_IFMT(entry.mode) not in kinds]:
            del self._entries[path]
            self._note("special", path, "is a device, pipe or socket: dropped")

    def merge_usr(self) -> None:
        for path in [path for path in sorted(self._entries) if _MERGED.fullmatch(path) and self._is_directory(path)]:
            self._directory(b"usr")
            target = b"usr/" + path
            if self._is_link(target):
                raise UnpreparableTreeError(f"{os.fsdecode(target)} is a link and /{os.fsdecode(path)} a directory.")
            for name in self._below(path):
                moved = target + name.removeprefix(path)
                held = self._entries.get(moved)
                if held is not None and not (self._is_directory(moved) and self._is_directory(name)):
                    raise UnpreparableTreeError(
                        f"both /{os.fsdecode(name)} and /{os.fsdecode(moved)} are there; merge /usr in the build."
                    )
            count = self._move(path, target)
            self._link(path, target)
            self._note("usr merge", path, f"{count} names moved to {os.fsdecode(target)}, link in their place")

    def place_kernel(self) -> None:
        if any(
            re.fullmatch(rb"usr/lib/modules/[^/]+/vmlinuz|usr/lib/ostree-boot/vmlinuz-.*", p) for p in self._entries
        ):
            return
        apps = [path for path in self._entries if _UEFI_APP.fullmatch(path)]
        if len(apps) > 1:
            names = ", ".join(sorted(map(os.fsdecode, apps)))
            raise UnpreparableTreeError(f"exactly one UEFI application may be in boot/EFI/BOOT, found {names}.")
        kernels = [path for path in sorted(self._entries) if _KERNEL.fullmatch(path) and self._is_file(path)]
        if kernels:
            self._place_plain_kernel(kernels)
        elif apps:
            self._place_uefi_app(apps[0])
        else:
            raise UnpreparableTreeError(
                "there is no kernel: neither usr/lib/modules/VERSION/vmlinuz, nor boot/vmlinuz-VERSION, nor "
                "boot/EFI/BOOT/boot*.efi; install one, or prepare with --no-kernel for a tree that is not booted."
            )

    def _place_plain_kernel(self, kernels: Sequence[bytes]) -> None:
        if len(kernels) > 1:
            names = ", ".join(map(os.fsdecode, kernels))
            raise UnpreparableTreeError(f"there are several kernels ({names}); leave the one that shall boot.")
        found = _KERNEL.fullmatch(kernels[0])
        version = os.fsdecode(found[1]) if found else ""
        place = f"usr/lib/modules/{version}"
        self._directory(os.fsencode(place))
        self._copy("kernel", kernels[0], f"{place}/vmlinuz")
        usual = [os.fsencode(name.format(version)) for name in _INITRAMFS]
        initramfs = next((name for name in usual if self._is_file(name)), None)
        if initramfs is not None:
            self._copy("kernel", initramfs, f"{place}/initramfs.img")

    def _place_uefi_app(self, app: bytes) -> None:
        name = os.fsdecode(app).rpartition("/")[2]
        place = "usr/lib/ostree-boot"
        digest = self._digest(app)
        self._directory(place.encode())
        self._copy("kernel", app, f"{place}/{name}.ext-{digest}")
        internal = os.fsencode(_INTERNAL_APP + name)
        if self._is_file(internal):
            self._copy("kernel", internal, f"{place}/{name}.int-{self._digest(internal)}")
        for kind in ("vmlinuz", "initramfs"):
            path = os.fsencode(f"{place}/{kind}-{digest}")
            self._entries[path] = CommitEntry(path=path, mode=stat.S_IFREG | 0o644, uid=0, gid=0)
            self._note("kernel", path, "empty file added: OSTree insists on it")

    def place_os_release(self) -> None:
        if self._is_file(b"usr/lib/os-release"):
            return
        held = next((path for path in (b"etc/os-release", b"usr/etc/os-release") if self._is_file(path)), None)
        if held is None:
            raise UnpreparableTreeError("there is no usr/lib/os-release, after which boot entries are named; add one.")
        self._directory(b"usr/lib")
        self._copy("release", held, "usr/lib/os-release")
        target = b"../usr/lib/os-release" if held.startswith(b"etc") else b"../lib/os-release"
        self._link(held, target)

    def move_etc(self) -> None:
        if not self._is_directory(b"etc"):
            return
        if self._below(b"usr/etc"):
            raise UnpreparableTreeError("both /etc and /usr/etc have files; leave one of them.")
        self._entries.pop(b"usr/etc", None)
        self._directory(b"usr")
        count = self._move(b"etc", b"usr/etc")
        self._note("etc", b"etc", f"{count} names moved to usr/etc: the defaults of each deployment")

    def make_places(self, places: Mapping[str, str]) -> None:
        self._empty(b"sysroot")
        if not self._is_link(b"ostree"):
            self._drop(b"ostree", "places")
            self._link(b"ostree", b"sysroot/ostree")
            self._note("places", b"ostree", "link to sysroot/ostree added")
        for name, target in sorted(places.items()):
            path = os.fsencode(name)
            if not target:
                self._empty(path)
                continue
            if self._is_link(path) and self._entries[path].target == os.fsencode(target):
                continue
            held = [name for name in self._below(path) if not self._is_scaffold(name, path)]
            if held and path not in _VOLATILE:
                raise UnpreparableTreeError(
                    f"/{name} would become a link to {target}, but holds {len(held)} names, such as "
                    f"{os.fsdecode(held[0])}; install them elsewhere, or use another layout."
                )
            self._drop(path, "places")
            self._directory(path.rpartition(b"/")[0])
            self._link(path, os.fsencode(target))
            self._note("places", path, f"link to {target} in its place")

    def _empty(self, path: bytes) -> None:
        if self._is_link(path):
            raise UnpreparableTreeError(f"/{os.fsdecode(path)} is a link and should be a mount point.")
        held = self._below(path)
        for name in held:
            del self._entries[name]
        if held:
            self._note("places", path, f"emptied: {len(held)} names dropped, it is a mount point")
        if path not in self._entries:
            self._directory(path)
            self._note("places", path, "empty directory added: it is a mount point")

    def _drop(self, path: bytes, step: str) -> None:
        held = [name for name in (path, *self._below(path)) if name in self._entries]
        for name in held:
            del self._entries[name]
        if len(held) > 1:
            self._note(step, path, f"{len(held) - 1} names in it dropped")

    def _directory(self, path: bytes) -> None:
        """Make sure of a directory and those above it."""
        while path and not self._is_directory(path):
            if path in self._entries:
                raise UnpreparableTreeError(f"/{os.fsdecode(path)} is no directory.")
            self._entries[path] = CommitEntry(path=path, mode=_DIRECTORY_MODE, uid=0, gid=0)
            path = path.rpartition(b"/")[0]

    def _link(self, path: bytes, target: bytes) -> None:
        self._entries[path] = CommitEntry(path=path, mode=_LINK_MODE, uid=0, gid=0, target=target)

    def _move(self, path: bytes, target: bytes) -> int:
        names = [path, *self._below(path)]
        for name in names:
            entry = self._entries.pop(name)
            moved = target + name.removeprefix(path)
            if not (self._is_directory(moved) and stat.S_ISDIR(entry.mode)):
                self._entries[moved] = replace(entry, path=moved)
        return len(names) - 1

    def _copy(self, step: str, path: bytes, target: str) -> None:
        place = os.fsencode(target)
        self._entries[place] = replace(self._entries[path], path=place)
        self._note(step, path, f"copied to {target}")

    def _digest(self, path: bytes) -> str:
        source = self._entries[path].source
        with open(os.path.join(os.fsencode(self._root), source or path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _below(self, path: bytes) -> list[bytes]:
        return sorted(name for name in self._entries if name.startswith(path + b"/"))

    def _is_scaffold(self, path: bytes, place: bytes) -> bool:
        """Tell whether nothing is lost with a name: a directory or a link inside `place`, as in Debian's /usr/local."""
        entry = self._entries[path]
        target = entry.target or b""
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return stat.S_ISDIR(entry.mode) or (stat.S_ISLNK(entry.mode) and inside.startswith(place + b"/"))

    def _is_directory(self, path: bytes) -> bool:
        return path in self._entries and stat.S_ISDIR(self._entries[path].mode)

    def _is_link(self, path: bytes) -> bool:
        return path in self._entries and stat.S_ISLNK(self._entries[path].mode)

    def _is_file(self, path: bytes) -> bool:
        return path in self._entries and stat.S_ISREG(self._entries[path].mode)

    def _note(self, step: str, path: bytes, what: str) -> None:
        self._changes.append(Change(step, os.fsdecode(path), what))


def write_out(root: Path, entries: Sequence[CommitEntry], out: Path) -> None:
    """Write `entries` as the directory `out`, which must not exist; content is linked from `root` where that works.

    It gets its name when it is whole.

    Raises:
        UnpreparableTreeError: `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise UnpreparableTreeError(f"{out} is there already; name a directory that is not.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    base, source = os.fsencode(temporary), os.fsencode(root)
    try:
        for entry in entries:
            _write_entry(entry, os.path.join(base, entry.path) if entry.path else base, source)
        # Modes come last: a directory may be read-only.
        for entry in reversed(entries):
            if stat.S_ISDIR(entry.mode):
                os.chmod(os.path.join(base, entry.path), stat.S_IMODE(entry.mode))
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_entry(entry: CommitEntry, path: bytes, source: bytes) -> None:
    if stat.S_ISDIR(entry.mode):
        os.mkdir(path, 0o700)
    elif entry.target is not None:
        os.symlink(entry.target, path)
    elif entry.source is not None:
        held = os.path.join(source, entry.source)
        try:
            os.link(held, path, follow_symlinks=False)
        except OSError:
            shutil.copy2(held, path, follow_symlinks=False)
        else:
            # A linked file has its owner, mode and attributes already.
            return
    else:
        with open(path, "wb") as stream:
            stream.write(entry.content)
    if os.geteuid() == 0:
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    for name, value in entry.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    if stat.S_ISREG(entry.mode):
        os.chmod(path, stat.S_IMODE(entry.mode))
