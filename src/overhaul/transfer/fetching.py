"""Fetching whole things: bounded, and checked against what was signed."""

import hashlib
from collections.abc import Generator
from contextlib import closing
from typing import BinaryIO

from overhaul.errors import TrustError
from overhaul.release.record import FileRef
from overhaul.transfer.fetcher import Fetcher, OversizeError, RefusedStatusError, Request
from overhaul.transfer.ranges import ShortFileError, read_ranges

#: No length has more, but for a server that pads it with zeros for no good reason.
_MAX_DIGITS = 40


class WrongDigestError(TrustError):
    """Bytes that came are not those that were signed."""

    def __init__(self, *, url: str, part: str = "") -> None:
        self.url = url
        self.part = part
        named = f"{part} of {url}" if part else url
        super().__init__(
            f"{named} does not have the digest that was signed; nothing of it was used. Something on the way changes "
            "it (use https), or the server's copy is damaged: mend it or publish the release again."
        )


def fetch_bytes(fetcher: Fetcher, url: str, *, limit_bytes: int, start: int = 0, end: int | None = None) -> bytes:
    """Return a file, or the part of it from `start` to `end`.

    Raises:
        OversizeError: More than `limit_bytes` came, or were announced.
        RefusedStatusError: The server has no such file.
        ShortFileError: The file ends before `end`.
    """
    if end is not None:
        if end - start > limit_bytes:
            raise OversizeError(url=url, limit_bytes=limit_bytes)
        if end <= start:
            return b""
        with closing(read_ranges(fetcher, url, [(start, end)])) as parts:
            return b"".join(next(parts))
    return _gathered(_whole(fetcher, Request(url=url, start=start), limit_bytes=limit_bytes))


def fetch_ref(fetcher: Fetcher, base_url: str, ref: FileRef) -> bytes:
    """Return the published file `ref` of the repository at `base_url`, checked.

    Raises:
        WrongDigestError: The bytes are not the signed ones.
        ShortFileError: Fewer bytes came than were signed.
        OversizeError: More bytes came than were signed.
    """
    url = published_url(base_url, ref.path)
    data = _gathered(_whole(fetcher, Request(url=url, size_bytes=ref.size), limit_bytes=ref.size))
    if len(data) < ref.size:
        raise ShortFileError(url=url, end_byte=len(data), wanted_end_byte=ref.size)
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise WrongDigestError(url=url)
    return data


def fetch_file(fetcher: Fetcher, url: str, stream: BinaryIO, *, limit_bytes: int, sha256: str) -> None:
    """Write a file to `stream` as it comes; the stream takes its final name only when this returns.

    Raises:
        WrongDigestError: The bytes are not the signed ones.
        OversizeError: More than `limit_bytes` came.
    """
    digest = hashlib.sha256()
    with closing(_whole(fetcher, Request(url=url), limit_bytes=limit_bytes)) as pieces:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
    if digest.hexdigest() != sha256:
        raise WrongDigestError(url=url)


def published_url(base_url: str, path: str) -> str:
    """Return the address of a published path below the repository's base URL."""
    return f"{base_url.rstrip('/')}/{path}"


def _gathered(pieces: Generator[bytes]) -> bytes:
    with closing(pieces):
        data = bytearray()
        for piece in pieces:
            data += piece
        return bytes(data)


def _whole(fetcher: Fetcher, request: Request, *, limit_bytes: int) -> Generator[bytes]:
    with fetcher.fetch(request) as response:
        if response.status != (206 if request.start else 200):
            raise RefusedStatusError.of(response)
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > _MAX_DIGITS or int(announced) > limit_bytes):
            raise OversizeError(url=response.url, limit_bytes=limit_bytes)
        received = 0
        for piece in response.body:
            received += len(piece)
            if received > limit_bytes:
                raise OversizeError(url=response.url, limit_bytes=limit_bytes)
            yield piece
