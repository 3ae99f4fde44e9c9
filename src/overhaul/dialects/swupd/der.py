"""Reading DER, as far as a detached CMS signature needs it: elements, their tags, and their exact bytes.

OpenSSL's streaming output has indefinite lengths in its outer elements, so these are read, too. Nothing is decoded
that is not asked for, nesting is bounded, and no length reaches outside of its element.
"""

from dataclasses import dataclass

SEQUENCE = 0x30
SET = 0x31
INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
#: Context-specific constructed elements 0 and 1, and primitive 0.
CONTEXT_0 = 0xA0
CONTEXT_1 = 0xA1
CONTEXT_0_PRIMITIVE = 0x80

_DEPTH_MAX = 32
_END = b"\0\0"
_ELEMENTS_MAX = 4096


class MalformedDerError(ValueError):
    """Bytes that are no DER; becomes an error that names the signature."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element."""

    tag: int
    #: What is inside.
    content: bytes
    #: All of its bytes, head and all.
    whole: bytes

    def parts(self) -> list["Element"]:
        """Return the elements inside a constructed one."""
        return read_elements(self.content)


def read_element(data: bytes, tag: int) -> Element:
    """Return the one element that `data` is, which must have `tag`."""
    elements = read_elements(data)
    if len(elements) != 1:
        raise MalformedDerError(f"{len(elements)} elements stand in the place of one")
    return expect(elements[0], tag)


def expect(element: Element, tag: int) -> Element:
    """Return `element` when it has `tag`."""
    if element.tag != tag:
        raise MalformedDerError(f"an element has the tag {element.tag:#04x} instead of {tag:#04x}")
    return element


def read_elements(data: bytes) -> list[Element]:
    """Return the elements that `data` consists of."""
    elements: list[Element] = []
    position = 0
    while position < len(data):
        element, position = _read(data, position, depth=0)
        elements.append(element)
        if len(elements) > _ELEMENTS_MAX:
            raise MalformedDerError("it has too many elements")
    return elements


def _read(data: bytes, begin: int, *, depth: int) -> tuple[Element, int]:
    if depth > _DEPTH_MAX:
        raise MalformedDerError("it is nested too deeply")
    if begin + 2 > len(data):
        raise MalformedDerError("it is cut short")
    tag, length = data[begin], data[begin + 1]
    if tag & 0x1F == 0x1F:
        raise MalformedDerError("it has a tag of several bytes")
    position = begin + 2
    if length == 0x80:
        if not tag & 0x20:
            raise MalformedDerError("a primitive element has no length")
        return _read_indefinite(data, begin, position, depth=depth)
    if length > 0x80:
        count = length & 0x7F
        if count > 4 or position + count > len(data):
            raise MalformedDerError("a length is damaged")
        length = int.from_bytes(data[position : position + count], "big")
        position += count
    end = position + length
    if end > len(data):
        raise MalformedDerError("it is cut short")
    return Element(tag, data[position:end], data[begin:end]), end


def _read_indefinite(data: bytes, begin: int, position: int, *, depth: int) -> tuple[Element, int]:
    inside = position
    while data[position : position + 2] != _END:
        _element, position = _read(data, position, depth=depth + 1)
    end = position + len(_END)
    return Element(data[begin], data[inside:position], data[begin:end]), end


def set_of_attributes(element: Element) -> bytes:
    """Return signed attributes as they were signed: with the tag of a set in place of their own."""
    if element.whole[1] == 0x80:
        raise MalformedDerError("the signed attributes have no length")
    return bytes([SET]) + element.whole[1:]
