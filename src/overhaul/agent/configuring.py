"""This device's own configuration in an update: what it is merged from, and the layer it is written to.

`survey` finds out everything that is needed before anything of the new release is fetched; `Survey.merge` says what
becomes of every path; `carry_over` writes it for the slot. The preview shows what `Survey.merge` returned and the
update writes what it returns, so they agree unless somebody changed the configuration in between.

Until the restart the configuration may change again. `carry_again` then does the same once more, from what the layer
keeps and what lies in the slots, without a network; where nothing changed it writes nothing.

What the running release ships is told, the best first, by the header kept with the slot's layer, by its published
record, and by nothing. Then what the device changed is taken to be what lies in the layer of the running slot and
what the configuration says to keep.
"""

import hashlib
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from overhaul.agent.beginning import Session, session
from overhaul.agent.checking import Answered, lists_configuration, read_release
from overhaul.agent.ports import Device, Shipped
from overhaul.content.cache import ContentCache
from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4_tree import Ext4Folder
from overhaul.content.target import ImageReader, SlotUnusableError
from overhaul.errors import DeviceError, NetworkError, TrustError
from overhaul.install.configuration.layers import ConfigurationMovedError, Layers, layers_in
from overhaul.install.configuration.merging import Merge, is_among, merge
from overhaul.install.configuration.scanning import Scanned, read_here, scan
from overhaul.install.state import Phase
from overhaul.release.configuration import (
    MAX_CONTENT,
    Configuration,
    Node,
    Tree,
    decode_configuration,
    encode_configuration,
)
from overhaul.release.record import Release, ReleaseId
from overhaul.trust.refusals import UnknownTargetError

#: How often a configuration that is written to meanwhile is looked at again.
_TRIES = 3
_ETC = b"etc"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known about the configuration of this device and of the two releases."""

    etc: Path
    keep: tuple[str, ...]
    follow: tuple[str, ...]
    #: None where nothing tells it.
    base: Configuration | None
    release: Configuration | None
    #: Paths that lie in the layer of the running slot.
    layered: frozenset[bytes]
    contents: "ReleaseContents"

    def merge(self) -> "Surveyed":
        """Look at what the device has now, and return it with what becomes of it."""
        here = scan(self.etc)
        base = self._base(here.nodes)
        # A release that does not tell is taken to ship what the last one did.
        lower = base if self.release is None else self.release.nodes
        contents = _Contents(self.etc, self.contents)
        merged = merge(base, here.nodes, lower, contents=contents, keep=self.keep, follow=self.follow)
        return Surveyed(here=here, merged=merged, lower=lower)

    def _base(self, here: Tree) -> Tree:
        if self.base is not None:
            return self.base.nodes
        is_kept = is_among(self.keep)
        return {path: node for path, node in here.items() if path not in self.layered and not is_kept(path)}


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a device has, what it will have, and what will lie below the layer that makes the difference."""

    here: Scanned
    merged: Merge
    lower: Tree


class ReleaseContents:
    """Contents of what two releases ship: out of their slots, else as published, else as fetched earlier."""

    def __init__(
        self,
        *,
        slot: Path,
        base: Shipped | None = None,
        release: Shipped | None = None,
        new_slot: Path | None = None,
        cache: ContentCache | None = None,
    ) -> None:
        self._slot = _SlotFiles(slot)
        self._new_slot = None if new_slot is None else _SlotFiles(new_slot)
        self._base = base
        self._release = release
        self._cache = cache

    def base(self, path: bytes, node: Node) -> bytes | None:
        """Return a file of the running release."""
        found = self._slot.read(path, node)
        if found is None:
            found = self._cached(node)
        if found is None and self._base is not None and node.sha256 is not None:
            # A release that was pruned, or that a kit does not carry: then it is a conflict, not a failure.
            with suppress(NetworkError, TrustError):
                return self._base.content(node.sha256)
        return found

    def release(self, path: bytes, node: Node) -> bytes | None:
        """Return a file of the new release."""
        found = self._cached(node)
        if found is None and self._new_slot is not None:
            found = self._new_slot.read(path, node)
        if found is None and self._release is not None and node.sha256 is not None:
            found = self._release.content(node.sha256)
        return found

    def _cached(self, node: Node) -> bytes | None:
        return None if self._cache is None or node.sha256 is None else self._cache.get(node.sha256.hex())


class _SlotFiles:
    """Files below /etc of the image in a slot, as far as they are those of its release."""

    def __init__(self, slot: Path) -> None:
        self._slot = slot

    def read(self, path: bytes, node: Node) -> bytes | None:
        """Return the file that `node` says, or None when the slot does not hold it so."""
        one = None if self._folder is None else self._folder.objects.get(path)
        if self._folder is None or one is None or one.size != node.size or one.size > MAX_CONTENT:
            return None
        try:
            found = self._folder.read(one)
        except UnsuitableImageError:
            return None
        return found if hashlib.sha256(found).digest() == node.sha256 else None

    @cached_property
    def _folder(self) -> Ext4Folder | None:
        try:
            return Ext4Folder(_SlotBytes(self._slot), _ETC, image=self._slot.name)
        except (SlotUnusableError, UnsuitableImageError):
            return None


class _SlotBytes:
    """The bytes of a slot, read when they are asked for.

    A mapping would kill the agent with SIGBUS where the medium cannot be read; such places come as zeros here.
    """

    def __init__(self, slot: Path) -> None:
        self._reader = ImageReader(slot)
        weakref.finalize(self, self._reader.close)

    def __len__(self) -> int:
        return self._reader.size

    def __getitem__(self, place: slice) -> bytes:
        begin, end, _step = place.indices(self._reader.size)
        return self._reader.read(begin, max(0, end - begin))


@dataclass(frozen=True)
class _Contents:
    etc: Path
    releases: ReleaseContents

    def base(self, path: bytes, node: Node) -> bytes | None:
        return self.releases.base(path, node)

    def here(self, path: bytes, node: Node) -> bytes | None:
        data = read_here(self.etc, path, limit=MAX_CONTENT)
        if data is not None and hashlib.sha256(data).digest() != node.sha256:
            raise ConfigurationMovedError(path=path)
        return data

    def release(self, path: bytes, node: Node) -> bytes | None:
        return self.releases.release(path, node)


class LayerNotShownError(DeviceError):
    """The system runs without the configuration of its slot."""

    def __init__(self, *, slot: str) -> None:
        self.slot = slot
        super().__init__(
            f"Slot {slot} has its configuration in a layer that is not mounted over /etc, and an update would lose it; "
            "see what overhaul-mount-etc said while the device started, or give the layer up with "
            '`carry = "nothing"` in [configuration].'
        )


def layers_of(device: Device) -> Layers:
    """Return the layers of a device."""
    return layers_in(device.settings)


def survey(device: Device, answered: Answered, *, booted: str, running: ReleaseId, release: Release) -> Survey:
    """Return what is known before an update to `release`.

    Raises:
        LayerNotShownError: What runs here is not what its slot was given.
    """
    if device.has_lost_layer(booted):
        raise LayerNotShownError(slot=booted)
    settings = device.settings.configuration
    layers = layers_of(device)
    published = _published(device, answered, running)
    base = _decoded(layers.shipped(booted))
    if base is None and published is not None:
        base = published.configuration
    coming = device.open_shipped(release) if lists_configuration(answered, release) else None
    return Survey(
        etc=Path(settings.etc),
        keep=settings.keep,
        follow=settings.follow,
        base=base,
        release=None if coming is None else coming.configuration,
        layered=_paths_below(layers.upper(booted)),
        contents=ReleaseContents(slot=device.slots[booted].path, base=published, release=coming),
    )


def prepare_to_carry(
    device: Device, answered: Answered, *, booted: str, running: ReleaseId, release: Release
) -> Survey | None:
    """Find out all that carrying over will need, contents too, while nothing has happened; None: nothing is carried."""
    if device.settings.configuration.carry == "nothing":
        return None
    found = survey(device, answered, booted=booted, running=running, release=release)
    found.merge()
    return found


def carry_over(device: Device, survey: Survey | None, *, slot: str, is_again: bool = False) -> None:
    """Write the layer of `slot`, which does not run; `is_again` when it has not run since it was written.

    Raises:
        ConfigurationMovedError: The configuration does not come to rest.
        LayersUnusableError: The layer cannot be written.
    """
    layers = layers_of(device)
    if survey is None:
        layers.remove(slot)
        return
    for left in reversed(range(_TRIES)):
        try:
            seen = survey.merge()
            layers.replace(
                slot,
                seen.merged,
                release=seen.lower,
                here=survey.etc,
                may_keep=is_again,
                shipped=None if survey.release is None else encode_configuration(survey.release),
                base=None if survey.base is None else encode_configuration(survey.base),
            )
        except ConfigurationMovedError:
            if not left:
                raise
        else:
            return


def carry_again(device: Device) -> bool:
    """Carry the configuration over once more for an update that waits for its restart; tell whether there is one.

    Raises:
        ConfigurationMovedError, LayersUnusableError: As `carry_over`; the layer is what it was.
        LayerNotShownError: What runs here is not what its slot was given.
    """
    with session(device) as opened:
        return carry_into_waiting(opened)


def carry_into_waiting(opened: Session) -> bool:
    """Do what `carry_again` does, in a session that is open."""
    device, target = opened.device, opened.state.target
    settings = device.settings.configuration
    layers = layers_of(device)
    is_waiting = target is not None and opened.state.phase in {Phase.INSTALLED, Phase.AWAITING_REBOOT}
    if settings.carry == "nothing" or target is None or not is_waiting or layers.upper(target.slot) is None:
        return False
    if target.is_going_back:
        # That slot has the configuration that it had when it was left.
        return False
    booted = opened.view.booted
    if device.has_lost_layer(booted):
        raise LayerNotShownError(slot=booted)
    again = Survey(
        etc=Path(settings.etc),
        keep=settings.keep,
        follow=settings.follow,
        base=_decoded(layers.base(target.slot)),
        release=_decoded(layers.shipped(target.slot)),
        layered=_paths_below(layers.upper(booted)),
        contents=ReleaseContents(
            slot=device.slots[booted].path,
            new_slot=device.slots[target.slot].path,
            cache=ContentCache(Path(device.settings.state_directory) / "configuration"),
        ),
    )
    carry_over(device, again, slot=target.slot, is_again=True)
    return True


def _decoded(kept: bytes | None) -> Configuration | None:
    """Return what was kept with a layer, or None when that is nothing or damaged."""
    if kept is not None:
        with suppress(TrustError):
            return decode_configuration(kept)
    return None


def _published(device: Device, answered: Answered, running: ReleaseId) -> Shipped | None:
    """Return what is published of what the running release ships."""
    try:
        return device.open_shipped(read_release(answered, running))
    except (UnknownTargetError, NetworkError):
        return None


def _paths_below(upper: Path | None) -> frozenset[bytes]:
    if upper is None:
        return frozenset()
    found: set[bytes] = set()
    for folder, folders, files in os.walk(upper):
        found.update(os.fsencode((Path(folder) / name).relative_to(upper)) for name in (*folders, *files))
    return frozenset(found)
