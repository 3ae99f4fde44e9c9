"""What a client makes of the server's answer: which image is next, and where its bundle lies.

The server decides; the client only refuses what cannot be meant for it: the image that runs already, a list that
passes through it, unstable images it does not want, and paths that leave the address of images.
"""

from collections.abc import Sequence
from functools import cmp_to_key
from urllib.parse import quote

from overhaul.dialects.atomupd.candidates import Candidate, UnreadableUpdateError, Update, UpdatePath
from overhaul.dialects.atomupd.device.installing import Bundle
from overhaul.dialects.atomupd.manifest import Image
from overhaul.dialects.atomupd.ordering import is_below, is_same
from overhaul.errors import InputError

#: What may stand in a path besides letters, digits, `-`, `.`, `_` and `~`.
_SAFE = "/+@:=,!$&'()*;"


class UnexpectedBuildError(InputError):
    """The server offers something else than the caller wants."""

    def __init__(self, *, wanted: str, offered: str) -> None:
        self.wanted = wanted
        self.offered = offered
        super().__init__(f"The update to {wanted} was asked for, but {offered} is offered; check for updates again.")


def way_of(update: Update) -> UpdatePath | None:
    """Return the path to take: to the next release where one is offered, else within this one."""
    return update.major or update.minor


def next_candidates(path: UpdatePath, *, running: Image | None, want_unstable: bool | None) -> tuple[Candidate, ...]:
    """Return the candidates that are left for a device, the next one first; empty when it is up to date.

    Args:
        path: What the server offers.
        running: What the device runs, where that is known.
        want_unstable: Whether builds before a release are welcome; None leaves that to the server.

    Raises:
        UnreadableUpdateError: The running image stands behind others, so the list is for another device.
    """
    candidates = _ascending(path.candidates)
    if running is not None:
        places = [number for number, candidate in enumerate(candidates) if is_same(candidate.image, running)]
        if any(place > 0 for place in places):
            raise UnreadableUpdateError("the image that runs stands behind others in it")
        candidates = candidates[len(places) :]
        if want_unstable is False and running.version.is_stable:
            candidates = _stable(candidates)
    return candidates


def bundle_of(candidate: Candidate, *, images_url: str) -> Bundle:
    """Return where the bundle of a candidate lies.

    Raises:
        UnreadableUpdateError: Its path leads elsewhere than below `images_url`.
    """
    image = candidate.image
    store = candidate.chunks_store_path
    return Bundle(
        url=f"{images_url}/{_below(candidate.update_path)}",
        store_url=f"{images_url}/{_below(store)}" if store else None,
        product=image.product,
        variant=image.shown_variant,
        arch=image.arch,
        version=image.version.text,
        build_id=str(image.build_id),
    )


def refuse_other(candidates: Sequence[Candidate], *, wanted: str) -> None:
    """Raise `UnexpectedBuildError` unless the first candidate is the build `wanted`."""
    offered = str(candidates[0].image.build_id) if candidates else "nothing"
    if offered != wanted:
        raise UnexpectedBuildError(wanted=wanted, offered=offered)


def _ascending(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    def compare(left: Candidate, right: Candidate) -> int:
        return -1 if is_below(left.image, right.image, fourth_number=True) else 1

    return tuple(sorted(candidates, key=cmp_to_key(compare)))


def _stable(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Leave unstable images out; an unstable checkpoint cannot be passed over, so it ends the list."""
    kept = []
    for candidate in candidates:
        image = candidate.image
        if image.version.is_stable:
            kept.append(candidate)
        elif image.checkpoint or image.introduces_checkpoint:
            break
    return tuple(kept)


def _below(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or not path.isprintable():
        raise UnreadableUpdateError(f"the path {path[:200]!r} does not stay below the address of images")
    return quote(path, safe=_SAFE)
