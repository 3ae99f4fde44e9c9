"""GVariant's binary form, as much of it as OSTree's files need: bytes and values, no I/O.

A type is its GVariant string, such as `(a{sv}aya(say)sstayay)`. Values are Python's own: integers, `bool`,
`float`, `str`, tuples for tuples, dictionary entries and arrays; `ay` is `bytes`, `v` is a `Variant`, `m` is None or
the value. Integers are little-endian here; OSTree swaps many of its own, which `big32` and `big64` do.

The decoder trusts nothing: every offset is checked, padding must be zero, strings must be UTF-8 with one NUL, types
inside variants are bounded in length and depth. Bytes that decode are in normal form, so that encoding the value
gives the same bytes. The layout of containers, with w = bytes of an offset, 1, 2, 4 or 8 by the container's size:

    array of fixed-size elements     the elements
    array of others                  elements, each aligned; then the end of each, w bytes, in order
    tuple                            members, each aligned; then the ends of all members of variable size but the
                                     last member, w bytes, in reverse order; one of fixed size only is padded instead
    variant                          the value, a zero byte, its type
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from overhaul.dialects.ostree.errors import MalformedOstreeDataError

#: Variants within variants, and containers within containers of one type; OSTree's own have at most five.
_MAX_DEPTH = 24
#: Bytes of a type inside a variant; GVariant's own limit is that of signatures on D-Bus.
_MAX_TYPE_LENGTH = 255


class Variant(NamedTuple):
    """A value that carries its type."""

    type: str
    value: Any


class _FormError(Exception):
    """Why bytes are not what a type says; rendered by `decode`."""


class _Codec(ABC):
    alignment = 1
    #: Bytes of every value, or None when they differ.
    fixed_size: int | None = None

    @abstractmethod
    def encode(self, value: Any) -> bytes: ...

    @abstractmethod
    def decode(self, data: memoryview, depth: int) -> Any: ...


def encode(type_string: str, value: Any) -> bytes:
    """Return the serialised `value`, which must be of the type; a wrong value is a bug and raises as such."""
    return _codec(type_string).encode(value)


def decode(type_string: str, data: bytes | memoryview, *, what: str) -> Any:
    """Return the value in `data`; `what` names it in errors.

    Raises:
        MalformedOstreeDataError: The bytes are no value of the type in normal form.
    """
    try:
        return _codec(type_string).decode(memoryview(data), 0)
    except _FormError as error:
        raise MalformedOstreeDataError(what=what, reason=str(error)) from error


def big32(value: int) -> int:
    """Return a 32-bit number with its bytes the other way round."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")


def big64(value: int) -> int:
    """Return a 64-bit number with its bytes the other way round."""
    return int.from_bytes(value.to_bytes(8, "little"), "big")


class _Number(_Codec):
    def __init__(self, form: str) -> None:
        self._struct = struct.Struct("<" + form)
        self.alignment = self.fixed_size = self._struct.size

    def encode(self, value: Any) -> bytes:
        return self._struct.pack(value)

    def decode(self, data: memoryview, depth: int) -> Any:  # noqa: ARG002
        if len(data) != self.fixed_size:
            raise _FormError(f"a number has {len(data)} bytes instead of {self.fixed_size}")
        return self._struct.unpack(data)[0]


class _Boolean(_Codec):
    fixed_size = 1

    def encode(self, value: Any) -> bytes:
        return b"\1" if value else b"\0"

    def decode(self, data: memoryview, depth: int) -> Any:  # noqa: ARG002
        if bytes(data) not in (b"\0", b"\1"):
            raise _FormError("a boolean is neither 0 nor 1")
        return bool(data[0])


class _Text(_Codec):
    def encode(self, value: Any) -> bytes:
        data: bytes = value.encode()
        if 0 in data:
            raise ValueError("a string of a variant cannot hold NUL")
        return data + b"\0"

    def decode(self, data: memoryview, depth: int) -> Any:  # noqa: ARG002
        content = bytes(data)
        if not content or content.find(b"\0") != len(content) - 1:
            raise _FormError("a string does not end with its only NUL")
        try:
            return content[:-1].decode()
        except UnicodeDecodeError as error:
            raise _FormError("a string is not UTF-8") from error


class _Bytes(_Codec):
    def encode(self, value: Any) -> bytes:
        return bytes(value)

    def decode(self, data: memoryview, depth: int) -> Any:  # noqa: ARG002
        return bytes(data)


class _AnyVariant(_Codec):
    alignment = 8

    def encode(self, value: Any) -> bytes:
        held = Variant._make(value)
        return _codec(held.type).encode(held.value) + b"\0" + held.type.encode()

    def decode(self, data: memoryview, depth: int) -> Any:
        _check_depth(depth)
        tail = bytes(data[-_MAX_TYPE_LENGTH - 1 :])
        cut = tail.rfind(b"\0")
        if cut < 0:
            raise _FormError("a variant has no type")
        try:
            type_string = tail[cut + 1 :].decode("ascii")
            codec = _codec(type_string)
        except ValueError as error:
            raise _FormError("a variant has a type that is none") from error
        return Variant(type_string, codec.decode(data[: len(data) - len(tail) + cut], depth + 1))


class _Maybe(_Codec):
    def __init__(self, element: _Codec) -> None:
        self._element = element
        self.alignment = element.alignment

    def encode(self, value: Any) -> bytes:
        if value is None:
            return b""
        return self._element.encode(value) + (b"" if self._element.fixed_size is not None else b"\0")

    def decode(self, data: memoryview, depth: int) -> Any:
        _check_depth(depth)
        if not data:
            return None
        if self._element.fixed_size is not None:
            return self._element.decode(data, depth + 1)
        if data[-1] != 0:
            raise _FormError("an optional value does not end with NUL")
        return self._element.decode(data[:-1], depth + 1)


class _Array(_Codec):
    def __init__(self, element: _Codec) -> None:
        self._element = element
        self.alignment = element.alignment

    def encode(self, value: Any) -> bytes:
        items = map(self._element.encode, value)
        if self._element.fixed_size is not None:
            return b"".join(items)
        body = bytearray()
        ends = []
        for item in items:
            body += b"\0" * (-len(body) % self.alignment)
            body += item
            ends.append(len(body))
        return bytes(body) + _offset_table(len(body), ends)

    def decode(self, data: memoryview, depth: int) -> Any:
        _check_depth(depth)
        if not data:
            return ()
        size = self._element.fixed_size
        if size is not None:
            if len(data) % size:
                raise _FormError(f"an array of {len(data)} bytes has elements of {size}")
            return tuple(
                self._element.decode(data[begin : begin + size], depth + 1) for begin in range(0, len(data), size)
            )
        width = _offset_width(len(data))
        if len(data) < width:
            raise _FormError("an array is cut short")
        table = int.from_bytes(data[-width:], "little")
        if table > len(data) - width or (len(data) - table) % width:
            raise _FormError("an array has an end outside itself")
        items = []
        position = 0
        for begin in range(table, len(data), width):
            end = int.from_bytes(data[begin : begin + width], "little")
            position = _aligned(data, position, self.alignment, end)
            if end > table:
                raise _FormError("an element ends outside its array")
            items.append(self._element.decode(data[position:end], depth + 1))
            position = end
        if _offset_width_for(table, len(items)) != width:
            raise _FormError("an array has wider ends than it needs")
        return tuple(items)


class _Tuple(_Codec):
    def __init__(self, members: Sequence[_Codec]) -> None:
        self._members = tuple(members)
        self.alignment = max(member.alignment for member in members)
        self.fixed_size = self._size()
        #: How many members have their end in the table.
        self._framed = sum(member.fixed_size is None for member in self._members[:-1])

    def _size(self) -> int | None:
        size = 0
        for member in self._members:
            if member.fixed_size is None:
                return None
            size += -size % member.alignment + member.fixed_size
        return size + -size % self.alignment

    def encode(self, value: Any) -> bytes:
        body = bytearray()
        ends = []
        last = len(self._members) - 1
        for place, (member, part) in enumerate(zip(self._members, value, strict=True)):
            body += b"\0" * (-len(body) % member.alignment)
            body += member.encode(part)
            if member.fixed_size is None and place != last:
                ends.append(len(body))
        if self.fixed_size is not None:
            return bytes(body) + b"\0" * (self.fixed_size - len(body))
        return bytes(body) + _offset_table(len(body), ends[::-1])

    def decode(self, data: memoryview, depth: int) -> Any:
        _check_depth(depth)
        if self.fixed_size is not None and len(data) != self.fixed_size:
            raise _FormError(f"a tuple has {len(data)} bytes instead of {self.fixed_size}")
        width = _offset_width(len(data))
        table = len(data) - (0 if self.fixed_size is not None else width * self._framed)
        if table < 0:
            raise _FormError("a tuple is cut short")
        values = []
        position = 0
        framed = 0
        last = len(self._members) - 1
        for place, member in enumerate(self._members):
            begin = position + -position % member.alignment
            if member.fixed_size is not None:
                end = begin + member.fixed_size
            elif place == last:
                end = table
            else:
                framed += 1
                at = len(data) - width * framed
                end = int.from_bytes(data[at : at + width], "little")
            position = _aligned(data, position, member.alignment, end)
            if end > table:
                raise _FormError("a member ends outside its tuple")
            values.append(member.decode(data[position:end], depth + 1))
            position = end
        if any(data[position:table]) or (self.fixed_size is None and position != table):
            raise _FormError("a tuple has bytes that belong to no member")
        if self._framed and _offset_width_for(table, self._framed) != width:
            raise _FormError("a tuple has wider ends than it needs")
        return tuple(values)


def _aligned(data: memoryview, position: int, alignment: int, end: int) -> int:
    begin = position + -position % alignment
    if begin > end or end > len(data):
        raise _FormError("a value ends before it begins, or outside its container")
    if any(data[position:begin]):
        raise _FormError("padding is not zero")
    return begin


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _FormError("values nest too deeply")


def _offset_width(size: int) -> int:
    if size <= 0xFF:
        return 1
    if size <= 0xFFFF:
        return 2
    return 4 if size <= 0xFFFFFFFF else 8


def _offset_width_for(body: int, count: int) -> int:
    return next(width for width in (1, 2, 4, 8) if body + count * width < 1 << 8 * width)


def _offset_table(body: int, ends: Iterable[int]) -> bytes:
    ends = list(ends)
    width = _offset_width_for(body, len(ends))
    return b"".join([end.to_bytes(width, "little") for end in ends])


_NUMBERS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "h": "i", "x": "q", "t": "Q", "d": "d"}
_SIMPLE: dict[str, _Codec] = {
    **{letter: _Number(form) for letter, form in _NUMBERS.items()},
    "b": _Boolean(),
    "s": _Text(),
    "o": _Text(),
    "g": _Text(),
    "v": _AnyVariant(),
}


@lru_cache(maxsize=256)
def _codec(type_string: str) -> _Codec:
    codec, end = _parse(type_string, 0, 0)
    if end != len(type_string):
        raise ValueError(f"{type_string!r} is more than one type")
    return codec


def _parse(text: str, position: int, depth: int) -> tuple[_Codec, int]:
    if depth > _MAX_DEPTH or position >= len(text):
        raise ValueError(f"{text!r} is no type")
    letter = text[position]
    if letter in _SIMPLE:
        return _SIMPLE[letter], position + 1
    if letter == "a":
        if text[position + 1 : position + 2] == "y":
            return _Bytes(), position + 2
        element, end = _parse(text, position + 1, depth + 1)
        return _Array(element), end
    if letter == "m":
        element, end = _parse(text, position + 1, depth + 1)
        if isinstance(element, _Maybe):
            # Nothing, and a value that is nothing, would both be None; nobody uses it.
            raise ValueError(f"{text!r} nests optional values")
        return _Maybe(element), end
    if letter in "({":
        members = []
        position += 1
        while text[position : position + 1] not in (")", "}"):
            member, position = _parse(text, position, depth + 1)
            members.append(member)
        if text[position] != {"(": ")", "{": "}"}[letter] or not members or (letter == "{" and len(members) != 2):
            raise ValueError(f"{text!r} is no type")
        return _Tuple(members), position + 1
    raise ValueError(f"{text!r} is no type")
