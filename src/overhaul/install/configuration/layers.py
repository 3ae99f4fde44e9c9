"""A configuration of its own for each slot, laid over what the slot's release ships, outside the slots.

    DIRECTORY/SLOT -> SLOT.4f1d…             a symbolic link, replaced as a whole: which layer the slot boots with
    DIRECTORY/SLOT.4f1d…/upper/              the upper directory of an overlay over the slot's /etc
    DIRECTORY/SLOT.4f1d…/work/               overlayfs's own
    DIRECTORY/SLOT.4f1d…/shipped             what that release ships, to compare with at the next update
    DIRECTORY/SLOT.4f1d…/base                what was compared with, to carry over again until the slot runs
    DIRECTORY/SLOT.4f1d…/digest              of what the layer shows, to know when there is nothing to do

A slot's image stays as it was signed; what differs from it lies here. A layer is written under a new name, made
durable, and then the link is moved, so at any moment a slot has its old layer or its new one. The layer of the slot
that runs is never touched: going back to it brings back the configuration that it had.

Objects are those of overlayfs: a character device 0/0 hides a name (Documentation/filesystems/overlayfs.rst).
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from overhaul.errors import DeviceError
from overhaul.host.files import sync_directory, sync_file_system
from overhaul.install.configuration.merging import Merge, Placed, Source
from overhaul.install.configuration.scanning import open_no_link
from overhaul.install.settings import DeviceSettings
from overhaul.release.configuration import (
    Configuration,
    Node,
    NodeKind,
    Tree,
    encode_configuration,
    holders_of,
    parent_of,
)

UPPER = "upper"
WORK = "work"
SHIPPED = "shipped"
_BASE = "base"
_DIGEST = "digest"


class ConfigurationMovedError(DeviceError):
    """A file of /etc changed while it was carried over."""

    is_passing = True

    def __init__(self, *, path: bytes) -> None:
        self.path = path
        super().__init__(
            f"/etc/{path.decode(errors='backslashreplace')} changed while the configuration was carried over; run the "
            "update again when nothing writes there."
        )


class LayersUnusableError(DeviceError):
    """The directory for layers cannot hold them."""

    def __init__(self, *, directory: Path, reason: str) -> None:
        self.directory = directory
        self.reason = reason
        super().__init__(
            f"Configuration cannot be kept in {directory} ({reason}); it needs a file system on which the agent may "
            "make character devices, such as ext4, outside the slots."
        )


class Layers:
    """The layers of a device."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def upper(self, slot: str) -> Path | None:
        """Return the upper directory that `slot` boots with, or None when it has none yet."""
        place = self.directory / slot / UPPER
        return place if place.is_dir() else None

    def is_shown(self, slot: str, etc: Path, mounts: str) -> bool:
        """Tell whether `etc` shows what `slot` boots with, which without a layer is what its release ships.

        Args:
            slot: The one that runs.
            etc: Where its layer should lie.
            mounts: The kernel's table, /proc/self/mountinfo.
        """
        if self.upper(slot) is None:
            return True
        # The path is as the initial RAM file system saw it; only the layer's name is the same everywhere.
        wanted = f"/{(self.directory / slot).resolve().name}/{UPPER}"
        over = [fields for line in mounts.splitlines() if len(fields := line.split(" ")) > 4 and fields[4] == str(etc)]
        if not over or "overlay" not in over[-1]:
            return False
        return any(option.startswith("upperdir=") and option.endswith(wanted) for option in over[-1][-1].split(","))

    def shipped(self, slot: str) -> bytes | None:
        """Return what the release in `slot` ships, when the slot was written with a layer and it is known."""
        return self._note(slot, SHIPPED)

    def base(self, slot: str) -> bytes | None:
        """Return what the device's own was compared with when the layer of `slot` was written."""
        return self._note(slot, _BASE)

    def _note(self, slot: str, name: str) -> bytes | None:
        try:
            return (self.directory / slot / name).read_bytes()
        except OSError:
            return None

    def replace(
        self,
        slot: str,
        merged: Merge,
        *,
        release: Tree,
        here: Path,
        may_keep: bool = False,
        shipped: bytes | None = None,
        base: bytes | None = None,
    ) -> None:
        """Give `slot` a layer that turns `release` into `merged`; durable when this returns.

        Args:
            slot: Not the one that runs.
            merged: What the device will have.
            release: What the new release ships, which lies below.
            here: The directory with the device's own objects.
            may_keep: Whether a layer that shows the same may stay; not when the slot ran with it, and wrote to it.
            shipped: What the new release ships, encoded; kept for the next update.
            base: What the running release ships, encoded; kept until the slot runs.

        Raises:
            ConfigurationMovedError: Something of the device's own changed after it was looked at.
            LayersUnusableError: The directory cannot hold a layer.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._remove_others(slot)
            digest = _digest(merged, release)
            if may_keep and self._note(slot, _DIGEST) == digest:
                return
            layer = self.directory / f"{slot}.{secrets.token_hex(8)}"
            layer.mkdir(mode=0o700)
            (layer / WORK).mkdir(mode=0o700)
            for name, data in ((SHIPPED, shipped), (_BASE, base), (_DIGEST, digest)):
                if data is not None:
                    (layer / name).write_bytes(data)
            write_upper(layer / UPPER, merged, release=release, here=here)
            sync_file_system(self.directory)
            link = self.directory / f".{slot}.link"
            link.unlink(missing_ok=True)
            link.symlink_to(layer.name)
            link.replace(self.directory / slot)
            sync_directory(self.directory)
        except OSError as error:
            raise LayersUnusableError(directory=self.directory, reason=error.strerror or str(error)) from error
        self._remove_others(slot)

    def remove(self, slot: str) -> None:
        """Let `slot` boot with what its release ships, and nothing of this device."""
        (self.directory / slot).unlink(missing_ok=True)
        if self.directory.is_dir():
            sync_directory(self.directory)
            self._remove_others(slot)

    def _remove_others(self, slot: str) -> None:
        link = self.directory / slot
        current = link.readlink().name if link.is_symlink() else ""
        for layer in self.directory.glob(f"{slot}.*"):
            if layer.name != current:
                shutil.rmtree(layer)


def layers_in(settings: DeviceSettings) -> Layers:
    """Return the layers of the device that `settings` describe."""
    return Layers(Path(settings.configuration.layers or Path(settings.state_directory) / "etc"))


def _digest(merged: Merge, release: Tree) -> bytes:
    """Return a digest of what a layer shows, and over what."""
    shown = ({path: placed.node for path, placed in merged.nodes.items()}, release)
    told = b"".join(encode_configuration(Configuration(nodes=dict(tree))) for tree in shown)
    return hashlib.sha256(told).hexdigest().encode()


def write_upper(upper: Path, merged: Merge, *, release: Tree, here: Path) -> None:
    """Make the directory `upper`, which over `release` shows `merged`.

    Raises:
        ConfigurationMovedError: Something of the device's own changed after it was looked at.
        OSError: The file system refuses.
    """
    wanted = dict(_differing(merged.nodes, release))
    for path in list(wanted):
        # What holds an object must be there; the merge says how it looks.
        for holder in holders_of(path):
            wanted.setdefault(holder, merged.nodes.get(holder))
    wanted[b""] = merged.nodes.get(b"")
    for path in sorted(wanted):
        place = upper / os.fsdecode(path)
        placed = wanted[path]
        if placed is None and not path:
            place.mkdir(0o755)
        elif placed is None:
            os.mknod(place, 0o020000, os.makedev(0, 0))
        else:
            _write(place, placed, here=here)


def _differing(nodes: Mapping[bytes, Placed], release: Tree) -> Iterator[tuple[bytes, Placed | None]]:
    """Yield what differs from the release: an object, or None for a name that is hidden."""
    for path, placed in nodes.items():
        if release.get(path) != placed.node:
            yield path, placed
    for path in release:
        if path in nodes:
            continue
        holder = nodes.get(parent_of(path))
        # Below something hidden or replaced there is nothing to hide.
        if holder is not None and holder.node.kind is NodeKind.DIRECTORY:
            yield path, None


def _write(place: Path, placed: Placed, *, here: Path) -> None:
    node = placed.node
    origin = here / os.fsdecode(placed.origin)
    if node.kind is NodeKind.DIRECTORY:
        place.mkdir(0o700)
    elif node.kind is NodeKind.LINK:
        place.symlink_to(os.fsdecode(node.target))
    elif placed.source is Source.HERE:
        _copy(origin, place, placed)
    else:
        if placed.data is None:
            raise AssertionError(f"{placed.origin!r} differs from the release and nobody has its content")
        with _new_file(place) as stream:
            stream.write(placed.data)
    _dress(place, node)
    if placed.source is Source.HERE:
        times = origin.lstat()
        os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns), follow_symlinks=False)


def _copy(origin: Path, place: Path, placed: Placed) -> None:
    digest = hashlib.sha256()
    try:
        reader = open_no_link(origin)
    except OSError as error:
        raise ConfigurationMovedError(path=placed.origin) from error
    with reader, _new_file(place) as writer:
        while piece := reader.read(1024 * 1024):
            digest.update(piece)
            writer.write(piece)
    if digest.digest() != placed.node.sha256:
        raise ConfigurationMovedError(path=placed.origin)


def _new_file(place: Path) -> BinaryIO:
    """Open a new file that nobody else may read before it has its permissions."""
    return os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _dress(place: Path, node: Node) -> None:
    """Give an object owner, permissions and attributes, in the order in which none undoes another."""
    os.chown(place, node.uid, node.gid, follow_symlinks=False)
    if node.kind is not NodeKind.LINK:
        place.chmod(node.mode)
    for name, value in node.xattrs:
        os.setxattr(place, name, value, follow_symlinks=False)
