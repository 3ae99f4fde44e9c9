"""The kernel of a tree, and the checksum by which equal kernels of several deployments share their place in /boot.

usr/lib/modules/KVER/{vmlinuz, initramfs.img | initramfs, devicetree, dtb/}    checksum over the contents
usr/lib/ostree-boot/{vmlinuz,initramfs,devicetree}-…HEX                        HEX is the checksum (refkit)
boot/{…}                                                                       the same, older still
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overhaul.errors import DeviceError

_SUFFIX = re.compile(r"(.+)-([0-9a-f]{64})(\.img)?\Z")
_LEGACY_DIRECTORIES = ("usr/lib/ostree-boot", "boot")


class NoKernelError(DeviceError):
    """A tree that cannot be booted."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The new commit cannot be booted: {reason}. Publish one with a kernel; nothing was deployed.")


@dataclass(frozen=True, kw_only=True)
class KernelLayout:
    """The files that go to /boot: names there, with where they lie."""

    boot_checksum: str
    kernel: tuple[str, Path]
    initramfs: tuple[str, Path] | None = None
    devicetree: tuple[str, Path] | None = None
    #: A directory of device trees.
    fdtdir: tuple[str, Path] | None = None
    #: Kept beside the kernel for systems in FIPS mode.
    hmac: tuple[str, Path] | None = None

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield each file with its name relative to the directory in /boot."""
        for named in (self.kernel, self.initramfs, self.devicetree, self.hmac):
            if named is not None:
                yield named
        if self.fdtdir is not None:
            name, directory = self.fdtdir
            for path in _files_below(directory):
                yield f"{name}/{path.relative_to(directory)}", path

    def size_bytes(self) -> int:
        """Return what its files take."""
        return sum(path.stat().st_size for _name, path in self.files())


def find_kernel(tree: Path) -> KernelLayout:
    """Return the kernel of the tree laid out at `tree`.

    Raises:
        NoKernelError: It has none, or it is not clear which.
    """
    modern = _modern(tree)
    if modern is not None and modern.initramfs is not None:
        return modern
    legacy = next((found for name in _LEGACY_DIRECTORIES if (found := _legacy(tree / name)) is not None), None)
    if legacy is not None:
        return legacy
    if modern is None:
        raise NoKernelError(reason="it has no kernel in usr/lib/modules/*/vmlinuz or usr/lib/ostree-boot")
    return modern


def _modern(tree: Path) -> KernelLayout | None:
    modules = tree / "usr/lib/modules"
    found = sorted(path for path in modules.glob("*/vmlinuz") if path.is_file()) if modules.is_dir() else []
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise NoKernelError(reason=f"it has several kernels ({names})")
    directory = found[0].parent
    version = directory.name
    digest = hashlib.sha256()
    _feed(digest, directory / "vmlinuz")
    initramfs = None
    for name, suffix in (("initramfs.img", ".img"), ("initramfs", "")):
        if (directory / name).is_file():
            initramfs = (f"initramfs-{version}{suffix}", directory / name)
            _feed(digest, directory / name)
            break
    devicetree = fdtdir = None
    if (directory / "dtb").is_dir():
        fdtdir = (f"dtb-{version}", directory / "dtb")
        for path in _files_below(directory / "dtb"):
            _feed(digest, path)
    elif (directory / "devicetree").is_file():
        devicetree = (f"devicetree-{version}", directory / "devicetree")
        _feed(digest, directory / "devicetree")
    hmac = directory / ".vmlinuz.hmac"
    return KernelLayout(
        boot_checksum=digest.hexdigest(),
        kernel=(f"vmlinuz-{version}", directory / "vmlinuz"),
        initramfs=initramfs,
        devicetree=devicetree,
        fdtdir=fdtdir,
        hmac=(f".vmlinuz-{version}.hmac", hmac) if hmac.is_file() else None,
    )


def _legacy(directory: Path) -> KernelLayout | None:
    if not directory.is_dir():
        return None
    found: dict[str, tuple[str, Path]] = {}
    checksums = {}
    for name in sorted(os.listdir(directory)):
        match = _SUFFIX.match(name)
        kind = next((kind for kind in ("vmlinuz", "initramfs", "devicetree") if name.startswith(f"{kind}-")), None)
        if match is None or kind is None:
            continue
        found[kind] = (match[1] + (match[3] or ""), directory / name)
        checksums[kind] = match[2]
    if "vmlinuz" not in found:
        return None
    checksum = checksums["vmlinuz"]
    for kind, other in checksums.items():
        if other != checksum:
            raise NoKernelError(reason=f"its {kind} has another checksum in its name than its kernel")
    return KernelLayout(
        boot_checksum=checksum,
        kernel=found["vmlinuz"],
        initramfs=found.get("initramfs"),
        devicetree=found.get("devicetree"),
    )


def _files_below(directory: Path) -> Iterator[Path]:
    for folder, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            yield Path(folder, name)


def _feed(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
