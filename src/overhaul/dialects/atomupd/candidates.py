"""The update document: what a server answers, in the query protocol and in static files, in every generation.

    {"minor": {"release": "holo", "candidates": [{"image": {...}, "update_path": "steamos/....raucb"}, ...],
               "replacement_eol_variant": "steamdeck"},
     "major": {...}}

`major`, the way to the next release, exists under the seed rules only. No update is an empty document. The same
record is written in two shapes: one line with the keys in their old order for queries, and sorted and indented for
files, where a byte more or less would make every device's copy differ.
"""

import json
from collections.abc import Mapping, Sequence

import msgspec

from overhaul.dialects.atomupd.manifest import Image, UnusableManifestError, image_of_fields
from overhaul.errors import InputError

#: Any value that JSON can write.
Json = str | int | bool | None | list["Json"] | dict[str, "Json"]

_MAX_DOCUMENT_BYTES = 16 << 20


class UnreadableUpdateError(InputError):
    """Bytes that should be an update document and are none."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The server's answer cannot be used: {reason}.")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One image on the way to an update."""

    image: Image
    #: Where its bundle lies below the address of images; forward slashes, not quoted.
    update_path: str
    #: Where its chunk store lies, when not beside the bundle.
    chunks_store_path: str = ""


class UpdatePath(msgspec.Struct, frozen=True, kw_only=True):
    """The images a device installs one after the other, the lowest first."""

    release: str
    candidates: tuple[Candidate, ...]
    #: The variant that stands in for the device's own, which has reached its end.
    replacement_eol_variant: str = ""


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a server offers one device."""

    minor: UpdatePath | None = None
    #: To the next release; seed rules only.
    major: UpdatePath | None = None

    def __bool__(self) -> bool:
        return self.minor is not None or self.major is not None


NO_UPDATE = Update()


def image_document(image: Image) -> dict[str, Json]:
    """Return the JSON object of `image` as it stands in an answer, its keys in the order of queries."""
    document: dict[str, Json] = {
        "product": image.product,
        "release": image.release,
        "variant": image.shown_variant,
    }
    if not image.branch:
        document.update(arch=image.arch, version=image.version.text, buildid=str(image.build_id))
        document["checkpoint"] = image.checkpoint
        return document
    if not image.legacy_variant:
        document.update(branch=image.branch, default_update_branch=image.default_update_branch)
    document.update(arch=image.arch, version=image.version.text, buildid=str(image.build_id))
    if image.introduces_checkpoint:
        document["introduces_checkpoint"] = image.introduces_checkpoint
    if image.introduces_checkpoint or image.requires_checkpoint:
        document["requires_checkpoint"] = image.requires_checkpoint
    document["estimated_size"] = image.estimated_size
    return document


def update_document(update: Update) -> dict[str, Json]:
    """Return the JSON object of `update`, its keys in the order of queries; empty for no update."""
    document: dict[str, Json] = {}
    for name, path in (("minor", update.minor), ("major", update.major)):
        if path is not None:
            document[name] = _path_document(path)
    return document


def encode_line(update: Update) -> bytes:
    """Return `update` as the query protocol sends it: one line, a blank behind each comma and colon."""
    return json.dumps(update_document(update)).encode()


def encode_file(update: Update) -> bytes:
    """Return `update` as static files hold it: sorted keys, four blanks, no newline at the end."""
    return json.dumps(update_document(update), indent=4, sort_keys=True).encode()


def decode_update(data: bytes) -> Update:
    """Return the update that `data` holds, in any shape that servers ever sent.

    Nothing, `""`, `null` and `{}` all mean no update. Without `minor` and `major` the document itself is the path.

    Raises:
        UnreadableUpdateError: It is not JSON, or lacks what an update must have.
    """
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise UnreadableUpdateError(f"it has {len(data)} bytes, more than {_MAX_DOCUMENT_BYTES}")
    if not data.strip():
        return NO_UPDATE
    try:
        document: object = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnreadableUpdateError(f"it is not JSON ({error})") from error
    return update_of_document(document)


def update_of_document(document: object) -> Update:
    """Return the update that a decoded JSON value holds; see `decode_update`."""
    if document is None or document in ("", {}):
        return NO_UPDATE
    if not isinstance(document, Mapping):
        raise UnreadableUpdateError("it is not a JSON object")
    if "minor" not in document and "major" not in document:
        return Update(minor=_path_of(document, "minor"))
    return Update(
        minor=_path_of(document["minor"], "minor") if document.get("minor") else None,
        major=_path_of(document["major"], "major") if document.get("major") else None,
    )


def _path_document(path: UpdatePath) -> Json:
    candidates: list[Json] = []
    for candidate in path.candidates:
        written: dict[str, Json] = {"image": image_document(candidate.image), "update_path": candidate.update_path}
        if candidate.chunks_store_path:
            written["chunks_store_path"] = candidate.chunks_store_path
        candidates.append(written)
    document: dict[str, Json] = {"release": path.release, "candidates": candidates}
    if path.replacement_eol_variant:
        document["replacement_eol_variant"] = path.replacement_eol_variant
    return document


def _path_of(document: object, name: str) -> UpdatePath:
    if not isinstance(document, Mapping):
        raise UnreadableUpdateError(f"{name!r} is not an object")
    release, candidates = document.get("release"), document.get("candidates")
    if not isinstance(release, str) or not isinstance(candidates, Sequence) or isinstance(candidates, str):
        raise UnreadableUpdateError(f"{name!r} lacks 'release' or 'candidates'")
    return UpdatePath(
        release=release,
        candidates=tuple(_candidate_of(candidate) for candidate in candidates),
        replacement_eol_variant=_text_of(document, "replacement_eol_variant"),
    )


def _candidate_of(document: object) -> Candidate:
    if not isinstance(document, Mapping) or not isinstance(document.get("image"), Mapping):
        raise UnreadableUpdateError("a candidate has no 'image'")
    update_path = document.get("update_path")
    if not isinstance(update_path, str):
        raise UnreadableUpdateError("a candidate has no 'update_path'")
    fields = document["image"]
    try:
        # An answer of the seed rules tells itself by its checkpoint flag or by a variant that no branch fits.
        image = image_of_fields(fields, branches=_has_branches(fields))
    except UnusableManifestError as error:
        raise UnreadableUpdateError(f"the image of a candidate is wrong: {error.reason}") from error
    return Candidate(image=image, update_path=update_path, chunks_store_path=_text_of(document, "chunks_store_path"))


def _has_branches(fields: Mapping[str, object]) -> bool:
    if fields.get("branch") or fields.get("default_update_branch"):
        return True
    return "checkpoint" not in fields and str(fields.get("variant", "")).partition("-")[0] == "steamdeck"


def _text_of(document: Mapping[str, object], name: str) -> str:
    value = document.get(name, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnreadableUpdateError(f"{name!r} is not a text")
    return value
