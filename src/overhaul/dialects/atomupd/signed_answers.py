"""The static tree in one file, so that one signature covers all of it: the target `PRODUCT/answers/atomupd.json`.

    {"format": 1, "contents": ["{}", ...], "files": {"holo/steamos/amd64/steamdeck/stable.json": 0, ...}}

Paths are those below `MetaUrl`; each names the place of its content. Many devices are told the same, so each content
stands there once. Sizes are not in it: they are estimates, and change without anything being another.
"""

from collections.abc import Mapping

import msgspec

from overhaul.errors import TrustError

_FORMAT = 1


class UnusableAnswersError(TrustError):
    """Signed answers that this client cannot read."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The repository's signed answers cannot be used: {reason}. Update this client.")


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    contents: tuple[str, ...]
    files: dict[str, int]


def encode_answers(files: Mapping[str, bytes]) -> bytes:
    """Return the document that holds `files`, contents by path; the same files always give the same bytes."""
    places: dict[bytes, int] = {}
    listed = {path: places.setdefault(files[path], len(places)) for path in sorted(files)}
    contents = tuple(data.decode() for data in places)
    return msgspec.json.encode(_Document(format=_FORMAT, contents=contents, files=listed))


def decode_answers(data: bytes) -> dict[str, bytes]:
    """Return the files that a document holds, contents by path.

    Raises:
        UnusableAnswersError: It is of another format.
    """
    try:
        document = msgspec.json.decode(data, type=_Document)
        contents = [text.encode() for text in document.contents]
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UnusableAnswersError(reason=str(error)) from error
    if document.format != _FORMAT:
        raise UnusableAnswersError(reason=f"they have format {document.format}")
    if any(not 0 <= place < len(contents) for place in document.files.values()):
        raise UnusableAnswersError(reason="a file has no content")
    return {path: contents[place] for path, place in document.files.items()}
