"""A response's body as a file that can be read in exact pieces."""

from collections.abc import Iterator


class BodyReader:
    """Reads a body; `read` returns fewer bytes than asked for only at its end."""

    def __init__(self, body: Iterator[bytes]) -> None:
        self._body = body
        self._piece = b""
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes; all that is left when it is negative."""
        have = len(self._piece) - self._position
        if 0 <= size <= have:
            return self._take(size)
        parts = [self._take(have)]
        while size < 0 or have < size:
            self._piece = next(self._body, b"")
            self._position = 0
            if not self._piece:
                break
            wanted = len(self._piece) if size < 0 else min(size - have, len(self._piece))
            parts.append(self._take(wanted))
            have += wanted
        return b"".join(parts)

    def _take(self, size: int) -> bytes:
        begin = self._position
        self._position += size
        if begin == 0 and size == len(self._piece):
            return self._piece
        return self._piece[begin : self._position]
