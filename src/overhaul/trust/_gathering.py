"""Small bodies gathered in memory, and never more of them than may come."""

from collections.abc import Iterator

from overhaul.transfer.fetcher import OversizeError

#: The timestamp is the one file whose size nothing signed announces.
TIMESTAMP_LIMIT_BYTES = 16 * 1024


def gathered(pieces: Iterator[bytes], *, url: str, limit_bytes: int) -> bytes:
    """Return `pieces` joined; raise `OversizeError` as soon as they are more than `limit_bytes`."""
    received = bytearray()
    for piece in pieces:
        received += piece
        if len(received) > limit_bytes:
            raise OversizeError(url=url, limit_bytes=limit_bytes)
    return bytes(received)
