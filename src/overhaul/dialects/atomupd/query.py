"""The query protocol: a query string comes in, status, type and body go out. No sockets, no files.

    GET /?product=steamos&release=holo&variant=steamdeck&arch=amd64&version=3.7.1&buildid=20240115.1&branch=stable

Clients of all years ask here, and what "no update" must look like differs: an empty body for those who do not send
`estimated_size`, and `{}` for those who do, because each of the two crashes the other's readers. Under strict
compatibility it is what the servers of the time sent. A question that makes no sense is answered with 400 and never
with more.

What is new is opt-in on the client's side: `hardware.FACT=VALUE`, `attended=True`, and `rollout=N` with a number from
0 to 99, the only thing a device says about its place in rollouts.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote_plus

import msgspec

from overhaul.dialects.atomupd.candidates import Update, encode_line, image_document
from overhaul.dialects.atomupd.catalogue import Catalogue, Entry
from overhaul.dialects.atomupd.manifest import Image, UnusableManifestError, image_of_fields
from overhaul.dialects.atomupd.requirements import UNKNOWN_ASKER, Asker, Requirement
from overhaul.dialects.atomupd.seed_selection import SeedSelection
from overhaul.dialects.atomupd.selection import Kind, Selection

_JSON = b"application/json"
_TEXT = b"text/html; charset=utf-8"
_MALFORMED = b"Malformed request"
_FACT = re.compile(r"hardware\.([a-z][a-z0-9_.]{0,63})")
_PLACE = re.compile(r"[0-9]{1,2}")
_MAX_FACTS = 32
_MAX_FACT_LENGTH = 256
#: Longer questions are nobody's.
MAX_QUERY_BYTES = 8192
#: Answers and views kept in memory; a fleet asks few different questions.
_REMEMBERED_ANSWERS = 16384
_REMEMBERED_VIEWS = 32
#: Devices ask with less; what strangers ask at length is not worth the memory.
_REMEMBERED_QUERY_BYTES = 512


class QueryAnswer(NamedTuple):
    """What goes out."""

    status: int
    content_type: bytes
    body: bytes


MALFORMED = QueryAnswer(400, b"text/plain; charset=utf-8", _MALFORMED)


class Answers:
    """Answers questions about one catalogue; used by one thread."""

    def __init__(
        self, catalogue: Catalogue, *, requirements: tuple[Requirement, ...] = (), clock: Callable[[], float]
    ) -> None:
        self.catalogue = catalogue
        self._support = catalogue.support
        self._clock = clock
        self._type = _TEXT if self._support.strict_compatibility else _JSON
        self._bound = [
            (entry, bound)
            for entry in catalogue.recorded
            if (bound := tuple(one for one in requirements if one.holds_for(entry.image)))
        ]
        self._everything = _View(catalogue)
        self._views: dict[frozenset[Entry], _View] = {frozenset(): self._everything}
        self._remembered: dict[bytes, QueryAnswer] = {}
        self._encoded: dict[int, tuple[Update, bytes]] = {}
        self._skipped = _skipped(catalogue)

    @property
    def asks_for_places(self) -> bool:
        """Whether the answer may depend on the device's place in a rollout."""
        return any(one.rollout is not None for _entry, bound in self._bound for one in bound)

    def answer(self, query: bytes, *, network: str = "") -> QueryAnswer:
        """Return the answer to a query string; `network` stands in for a place in rollouts that it does not state."""
        if not self._bound:
            known = self._remembered.get(query)
            if known is not None:
                return known
        if len(query) > MAX_QUERY_BYTES:
            return MALFORMED
        fields = parse_query(query)
        try:
            given = self._answer(fields, network)
        except UnusableManifestError:
            given = MALFORMED
        if not self._bound and len(query) <= _REMEMBERED_QUERY_BYTES:
            if len(self._remembered) >= _REMEMBERED_ANSWERS:
                self._remembered.clear()
            self._remembered[query] = given
        return given

    def listing(self, query: bytes) -> QueryAnswer:
        """Return the images of the pool as JSON for developers; the fields of the query narrow the list."""
        wanted = parse_query(query) if len(query) <= MAX_QUERY_BYTES else {}
        images: list[dict[str, object]] = []
        for entry in self.catalogue.recorded:
            document: dict[str, object] = dict(image_document(entry.image))
            if any(str(document.get(name, value)) != value for name, value in wanted.items()):
                continue
            document["update_path"] = entry.update_path
            if entry.image.skip:
                document["skip"] = True
            if entry.image.shadow_checkpoint:
                document["shadow_checkpoint"] = True
            images.append(document)
        report = {
            "images": images,
            "problems": list(self.catalogue.problems),
            "warnings": list(self.catalogue.warnings),
        }
        return QueryAnswer(200, _JSON, json.dumps(report, indent=2).encode() + b"\n")

    def _answer(self, fields: Mapping[str, str], network: str) -> QueryAnswer:
        image = image_of_fields(fields, branches=self._support.has_branches)
        view = self._view(fields, network) if self._bound else self._everything
        if view.seed is not None:
            update = view.seed.answer(image, wants_unstable=self._wants_unstable(fields))
            return QueryAnswer(200, self._type, encode_line(update)) if update else self._nothing(fields)
        if not image.skip and not self._support.strict_compatibility and _name(image) in self._skipped:
            image = msgspec.structs.replace(image, skip=True)
        assert view.selection is not None  # noqa: S101 - a view has one of the two
        update = view.selection.answer(image, branch=image.default_update_branch, kind=Kind.STANDARD)
        if not update:
            return self._nothing(fields)
        known = self._encoded.get(id(update))
        if known is None:
            if len(self._encoded) >= _REMEMBERED_ANSWERS:
                self._encoded.clear()
            # The record is kept beside its bytes, so that no other record can get its identity.
            known = self._encoded[id(update)] = (update, encode_line(update))
        return QueryAnswer(200, self._type, known[1])

    def _nothing(self, fields: Mapping[str, str]) -> QueryAnswer:
        if self._support.strict_compatibility:
            return QueryAnswer(200, _TEXT, b"" if self._support.unstable is None else b'""')
        if "estimated_size" in fields:
            return QueryAnswer(200, _JSON, b"{}")
        return QueryAnswer(200, _TEXT, b"")

    def _wants_unstable(self, fields: Mapping[str, str]) -> bool:
        flag = fields.get("want-unstable", "")
        if self._support.strict_compatibility:
            # The servers of the time took any text for a yes, also `False`.
            return bool(flag)
        return flag.strip().lower() in {"1", "true", "yes", "on"}

    def _view(self, fields: Mapping[str, str], network: str) -> "_View":
        asker = _asker(fields, network)
        now = int(self._clock())
        hidden = frozenset(
            entry for entry, bound in self._bound if not all(one.is_met(asker, entry.image, now=now) for one in bound)
        )
        view = self._views.get(hidden)
        if view is None:
            if len(self._views) >= _REMEMBERED_VIEWS:
                self._views = {frozenset(): self._everything}
            view = self._views[hidden] = _View(self.catalogue.without(hidden))
        return view


class _View:
    """The pool as one kind of device sees it."""

    def __init__(self, catalogue: Catalogue) -> None:
        has_branches = catalogue.support.has_branches
        self.selection = Selection(catalogue) if has_branches else None
        self.seed = None if has_branches else SeedSelection(catalogue)


def parse_query(query: bytes) -> dict[str, str]:
    """Return the parameters of a query string; of several with one name the first counts."""
    fields: dict[str, str] = {}
    for part in query.decode("latin-1").split("&"):
        name, _equals, value = part.partition("=")
        if "%" in part or "+" in part:
            name, value = unquote_plus(name), unquote_plus(value)
        fields.setdefault(name, value)
    return fields


def _asker(fields: Mapping[str, str], network: str) -> Asker:
    hardware: dict[str, str] = {}
    for name, value in fields.items():
        fact = _FACT.fullmatch(name)
        if fact is not None and value and len(value) <= _MAX_FACT_LENGTH and len(hardware) < _MAX_FACTS:
            hardware[fact.group(1)] = value
    place = fields.get("rollout", "")
    rollout_id = f"place {int(place)}" if _PLACE.fullmatch(place) else network
    is_attended = fields.get("attended", "").lower() == "true"
    if not hardware and not rollout_id and not is_attended:
        return UNKNOWN_ASKER
    return Asker(hardware=hardware, is_attended=is_attended, rollout_id=rollout_id)


def _name(image: Image) -> tuple[str, ...]:
    names = image.product, image.arch, image.release, image.shown_variant
    return *names, image.version.text, str(image.build_id)


def _skipped(catalogue: Catalogue) -> frozenset[tuple[str, ...]]:
    """Return the images that were withdrawn after devices had installed them, and do not know it."""
    return frozenset(_name(entry.image) for entry in catalogue.recorded if entry.image.skip)
