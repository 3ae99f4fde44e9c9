"""Whole numbers written in as many bytes as they need: seven bits a byte, lowest first, high bit means more."""

from overhaul.content.delta.errors import MalformedDeltaError

#: Nothing a delta counts or addresses needs more; longer numbers are hostile.
_MAX_BYTES = 9


def append_varint(out: bytearray, value: int) -> None:
    """Append `value`, which is not negative, to `out`."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def append_signed(out: bytearray, value: int) -> None:
    """Append `value` of either sign: 0, -1, 1, -2, 2... become 0, 1, 2, 3, 4..."""
    append_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)


class VarintReader:
    """Takes numbers one after another out of bytes that nobody vouches for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def number(self) -> int:
        """Return the next number."""
        data, position = self._data, self._position
        value = shift = 0
        try:
            byte = data[position]
            while byte & 0x80:
                value |= (byte & 0x7F) << shift
                shift += 7
                if shift == 7 * _MAX_BYTES:
                    raise MalformedDeltaError("a number is longer than any real one")
                position += 1
                byte = data[position]
        except IndexError as error:
            raise MalformedDeltaError("its header ends inside a number") from error
        self._position = position + 1
        return value | byte << shift

    def signed(self) -> int:
        """Return the next number of either sign."""
        value = self.number()
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def count(self, *, item_bytes: int = 1) -> int:
        """Return the next number as a count of things that take at least `item_bytes` each."""
        value = self.number()
        if value * item_bytes > self.remaining:
            raise MalformedDeltaError(f"its header announces {value} entries and ends before them")
        return value

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes as they are."""
        if size > self.remaining:
            raise MalformedDeltaError("its header ends too early")
        begin = self._position
        self._position += size
        return self._data[begin : self._position]
