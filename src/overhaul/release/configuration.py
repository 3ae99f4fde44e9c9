"""What a release ships as configuration: every object below /etc, known before anything of the release is fetched.

A published file of its own holds it, named by the release record (`record.ConfigurationRef`):

    8 bytes "OVHCFG01", then one zstd frame of MessagePack: a `Configuration`       the header, signed by its digest
    one zstd frame for each distinct content, as the header says where              fetched one by one, when needed

A header says everything but contents, so it tells what an update would change here; contents are only fetched of the
few files that both sides changed. Paths, link targets and attributes are bytes, as the kernel has them.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from overhaul.errors import TrustError
from overhaul.release.names import Size

CONFIGURATION_MAGIC = b"OVHCFG01"
CONFIGURATION_FORMAT = 1
#: A header decodes to at most this; Debian's is about 300 kB.
MAX_DECODED_HEADER = 16 * 1024 * 1024
#: Bigger files are known by their digest, and their contents are not published beside the image.
MAX_CONTENT = 1024 * 1024

_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_ATTRIBUTES_LEFT_OUT = (b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.", b"user.overlay.")


class NodeKind(StrEnum):
    """What an object is."""

    DIRECTORY = "directory"
    FILE = "file"
    LINK = "link"


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object, without its name and times; two are the same configuration when they are equal."""

    kind: NodeKind
    #: Permissions alone.
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    uid: _Id = 0
    gid: _Id = 0
    #: Of a file.
    size: Size = 0
    sha256: _Digest | None = None
    #: Of a symbolic link.
    target: bytes = b""
    #: Sorted by name; what a system labels by itself is left out.
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


#: Objects by their path relative to /etc; the directory itself is the empty path.
Tree = Mapping[bytes, Node]


class StoredContent(msgspec.Struct, frozen=True, kw_only=True):
    """Where the content of a file lies in the published file."""

    sha256: _Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_CONTENT)]
    #: From the end of the header on.
    offset: Size
    frame_size: Annotated[int, msgspec.Meta(gt=0, le=2 * MAX_CONTENT)]
    frame_sha256: _Digest


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What a release ships, and where the contents lie."""

    format: int = CONFIGURATION_FORMAT
    nodes: dict[bytes, Node]
    contents: tuple[StoredContent, ...] = ()


class MalformedConfigurationError(TrustError):
    """The bytes do not say what a release ships as configuration."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"What the release ships as configuration cannot be read: {reason}. Publish the release again."
        )


def kept_attributes(xattrs: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the attributes that are configuration: not labels that a system gives by itself."""
    return tuple(sorted((name, value) for name, value in xattrs if not name.startswith(_ATTRIBUTES_LEFT_OUT)))


def parent_of(path: bytes) -> bytes:
    """Return the path of the directory that holds `path`."""
    return path.rpartition(b"/")[0]


def holders_of(path: bytes) -> Iterator[bytes]:
    """Yield the path of every directory above `path`, the nearest first; the last one is the empty path."""
    while path:
        path = parent_of(path)
        yield path


def encode_configuration(configuration: Configuration) -> bytes:
    """Return the MessagePack bytes of a header; one configuration always gives the same bytes."""
    return msgspec.msgpack.encode(
        msgspec.structs.replace(configuration, nodes=dict(sorted(configuration.nodes.items())))
    )


def decode_configuration(data: bytes) -> Configuration:
    """Return the configuration in the MessagePack bytes of a header.

    Raises:
        MalformedConfigurationError: It is none, or its objects form no tree.
    """
    try:
        found = msgspec.msgpack.decode(data, type=Configuration)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedConfigurationError(str(error)) from error
    if found.format != CONFIGURATION_FORMAT:
        raise MalformedConfigurationError(f"its format is {found.format}, {CONFIGURATION_FORMAT} is known here")
    for path, node in found.nodes.items():
        _check(path, node, found.nodes)
    return found


def _check(path: bytes, node: Node, nodes: Tree) -> None:
    shown = repr(path[:200])
    if path:
        parts = path.split(b"/")
        if b"\0" in path or any(part in {b"", b".", b".."} for part in parts):
            raise MalformedConfigurationError(f"{shown} is no path")
        parent = nodes.get(parent_of(path))
        if parent is None or parent.kind is not NodeKind.DIRECTORY:
            raise MalformedConfigurationError(f"{shown} lies in no directory")
    elif node.kind is not NodeKind.DIRECTORY:
        raise MalformedConfigurationError("its root is no directory")
    is_whole = {
        NodeKind.FILE: node.sha256 is not None and not node.target,
        NodeKind.LINK: node.sha256 is None and bool(node.target) and b"\0" not in node.target,
        NodeKind.DIRECTORY: node.sha256 is None and not node.target,
    }
    if not is_whole[node.kind]:
        raise MalformedConfigurationError(f"{shown} is no {node.kind}")
