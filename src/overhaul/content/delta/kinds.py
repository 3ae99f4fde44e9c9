"""Kinds of files by how their units look once told; units of one kind share segments."""

METADATA_KIND = 0
PACKED_KIND = 4
OTHER_KIND = 5
_KIND_OF_SUFFIX = {b".ko": 1, b".a": 2}
_PACKED_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
_KIND_OF_MAGIC = ((b"\x7fELF", 3), *((magic, PACKED_KIND) for magic in _PACKED_MAGICS))


def kind_of(path: bytes, head: bytes) -> int:
    """Return the kind of a file from its name and first bytes; the order of kinds is the order in a delta."""
    for suffix, kind in _KIND_OF_SUFFIX.items():
        if path.endswith(suffix):
            return kind
    for magic, kind in _KIND_OF_MAGIC:
        if head.startswith(magic):
            return kind
    return OTHER_KIND
