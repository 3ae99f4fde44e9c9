"""What an update would do to this device's own configuration, told before anything of it is fetched."""

import difflib

import msgspec

from overhaul.agent.beginning import Session, running_release, session
from overhaul.agent.checking import Answered, ask, read_release
from overhaul.agent.configuring import Survey, survey
from overhaul.agent.outcomes import Checked, ExitCode
from overhaul.agent.ports import Device
from overhaul.errors import InputError
from overhaul.install.configuration.merging import Change, Fate, Item, Merge, Placed, Source
from overhaul.install.configuration.scanning import read_here
from overhaul.policy.selection import Offer
from overhaul.release.configuration import MAX_CONTENT, NodeKind
from overhaul.release.record import ReleaseId


class UnknownReleaseError(InputError):
    """A release that the channel does not hold for this device."""

    def __init__(self, *, wanted: str, known: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.known = known
        listed = ", ".join(known) or "none"
        super().__init__(
            f"The channel holds no release {wanted!r} for this device (it holds: {listed}); name one as VERSION or "
            "VERSION/BUILD."
        )


class PreviewedFile(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one path."""

    path: str
    fate: Fate
    #: What this device and the release did with it since the running release.
    here: Change
    release: Change
    reason: str
    #: Where the release's own lies beside, when it does.
    beside: str | None = None
    #: The file as it will be, for those that both sides changed; None for what is no text.
    text: str | None = None
    #: Merged files: from what is here to what will be. Conflicts: from what stays to what the release ships.
    difference: str = ""


class Previewed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `preview`."""

    running: ReleaseId
    release: ReleaseId
    #: Whether anything is carried over, as configured.
    carries: bool
    #: Whether it is known what the running release shipped, and what the new one ships.
    running_is_known: bool
    release_is_known: bool
    unchanged: int
    files: tuple[PreviewedFile, ...]

    @property
    def exit_code(self) -> ExitCode:
        """Done."""
        return ExitCode.DONE

    def of(self, fate: Fate) -> tuple[PreviewedFile, ...]:
        """Return the files with this fate."""
        return tuple(file for file in self.files if file.fate is fate)


def preview(device: Device, wanted: str | None = None) -> Previewed | Checked:
    """Return what an update would do to the configuration; starts nothing and writes nothing but what was fetched.

    Args:
        device: This device.
        wanted: VERSION or VERSION/BUILD of a release of the channel; None means the one that is offered.

    Returns:
        Checked when no release is named and none is offered.

    Raises:
        UnknownReleaseError: The channel does not hold it.
    """
    with session(device) as opened:
        running = running_release(device, opened.state, booted=opened.view.booted)
        answered = ask(opened, running)
        sought = _sought(answered, wanted)
        if sought is None:
            return Checked(running=running, decision=answered.decision, repository_changed=answered.changed)
        return _look(opened, answered, running, sought)


def _sought(answered: Answered, wanted: str | None) -> ReleaseId | None:
    policy, facts = answered.policy, answered.facts
    if wanted is None:
        decision = answered.decision
        return decision.entry.release_id(policy.product) if isinstance(decision, Offer) else None
    entries = policy.entries_for(variant=facts.variant, arch=facts.arch)
    for entry in entries:
        if wanted in (entry.version, f"{entry.version}/{entry.build_id}"):
            return entry.release_id(policy.product)
    raise UnknownReleaseError(wanted=wanted, known=tuple(f"{entry.version}/{entry.build_id}" for entry in entries))


def _look(opened: Session, answered: Answered, running: ReleaseId, sought: ReleaseId) -> Previewed:
    device = opened.device
    release = read_release(answered, sought)
    found = survey(device, answered, booted=opened.view.booted, running=running, release=release)
    seen = found.merge()
    here, merged = seen.here, seen.merged
    carries = device.settings.configuration.carry == "merged"
    shown = _Shown(found, merged)
    items = [item if carries else _left_behind(item) for item in merged.items]
    items += [
        Item(path=path, fate=Fate.LOST, here=Change.ADDED, release=Change.NONE, reason="no file, directory or link")
        for path in here.special
    ]
    return Previewed(
        running=running,
        release=sought,
        carries=carries,
        running_is_known=found.base is not None,
        release_is_known=found.release is not None,
        unchanged=len(here.nodes.keys() - {item.path for item in items}),
        files=tuple(map(shown.file, sorted(items, key=lambda item: item.path))),
    )


def _left_behind(item: Item) -> Item:
    """Return what becomes of a path where nothing is carried over."""
    fate = Fate.TAKEN if item.here is Change.NONE else Fate.LOST
    if item.fate is Fate.SAME:
        fate = Fate.SAME
    return Item(path=item.path, fate=fate, here=item.here, release=item.release)


class _Shown:
    """Turns items into what a person reads."""

    def __init__(self, found: Survey, merged: Merge) -> None:
        self._survey = found
        self._merged = merged

    def file(self, item: Item) -> PreviewedFile:
        text, difference = None, ""
        placed = self._merged.nodes.get(item.path)
        if item.fate in {Fate.MERGED, Fate.CONFLICT} and placed is not None and placed.node.kind is NodeKind.FILE:
            text = _text(self._content(placed))
            other = None
            if item.fate is Fate.MERGED:
                other = _text(read_here(self._survey.etc, item.path, limit=MAX_CONTENT))
                difference = _difference(other, text, item.path, "as it is here", "as it will be")
            elif item.beside is not None:
                other = _text(self._merged.nodes[item.beside].data)
                difference = _difference(text, other, item.path, "as it stays", "in the release")
        return PreviewedFile(
            path=_path(item.path),
            fate=item.fate,
            here=item.here,
            release=item.release,
            reason=item.reason,
            beside=None if item.beside is None else _path(item.beside),
            text=text,
            difference=difference,
        )

    def _content(self, placed: Placed) -> bytes | None:
        if placed.source is Source.HERE:
            return read_here(self._survey.etc, placed.origin, limit=MAX_CONTENT)
        return placed.data


def _path(path: bytes) -> str:
    return "/etc/" + path.decode(errors="backslashreplace") if path else "/etc"


def _text(data: bytes | None) -> str | None:
    if data is None or b"\0" in data:
        return None
    return data.decode(errors="backslashreplace")


def _difference(before: str | None, after: str | None, path: bytes, from_date: str, to_date: str) -> str:
    if before is None or after is None:
        return ""
    name = _path(path)
    old, new = before.splitlines(), after.splitlines()
    return "\n".join(difflib.unified_diff(old, new, name, name, from_date, to_date, lineterm=""))
