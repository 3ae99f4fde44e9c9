"""The file that says what a release ships as configuration: written when published, read in parts on a device.

Its format is described in `release.configuration`. A device fetches the header, and of the contents only those it
merges or shows; each part is compared with a signed digest before a byte of it is decoded.
"""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from overhaul.content.cache import ContentCache
from overhaul.content.ext4_tree import Ext4Object
from overhaul.content.tree import TreeEntry
from overhaul.content.zstd import compress_frame, decompress_frame
from overhaul.release.configuration import (
    CONFIGURATION_MAGIC,
    MAX_DECODED_HEADER,
    Configuration,
    MalformedConfigurationError,
    Node,
    NodeKind,
    StoredContent,
    Tree,
    decode_configuration,
    encode_configuration,
    kept_attributes,
)
from overhaul.release.record import ConfigurationRef
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.fetching import WrongDigestError, fetch_bytes, published_url

_LEVEL = 19
_KINDS = {stat.S_IFDIR: NodeKind.DIRECTORY, stat.S_IFREG: NodeKind.FILE, stat.S_IFLNK: NodeKind.LINK}
_MAGIC_SIZE = len(CONFIGURATION_MAGIC)


@dataclass(frozen=True, kw_only=True)
class WrittenConfiguration:
    """The bytes of a file, and how much of it is the header."""

    data: bytes
    header_size: int
    decoded_size: int


def write_configuration(nodes: Tree, contents: Mapping[bytes, bytes]) -> WrittenConfiguration:
    """Return the file for a tree; `contents` are by their SHA-256."""
    frames: list[bytes] = []
    stored: list[StoredContent] = []
    offset = 0
    for digest in sorted(contents):
        frame = compress_frame(contents[digest], level=_LEVEL)
        stored.append(
            StoredContent(
                sha256=digest,
                size=len(contents[digest]),
                offset=offset,
                frame_size=len(frame),
                frame_sha256=hashlib.sha256(frame).digest(),
            )
        )
        frames.append(frame)
        offset += len(frame)
    decoded = encode_configuration(Configuration(nodes=dict(nodes), contents=tuple(stored)))
    header = CONFIGURATION_MAGIC + compress_frame(decoded, level=_LEVEL)
    return WrittenConfiguration(data=b"".join((header, *frames)), header_size=len(header), decoded_size=len(decoded))


def read_configuration(header: bytes, *, decoded_size: int) -> Configuration:
    """Return what the header of a file says; its digest was checked.

    Raises:
        TrustError: It is no such header.
    """
    if header[:_MAGIC_SIZE] != CONFIGURATION_MAGIC or decoded_size > MAX_DECODED_HEADER:
        raise MalformedConfigurationError("it does not begin as it should, or is too big")
    return decode_configuration(decompress_frame(memoryview(header)[_MAGIC_SIZE:], size=decoded_size))


def node_of(entry: TreeEntry | Ext4Object, sha256: bytes | None) -> Node | None:
    """Return an object as a value, or None for one that is no configuration."""
    kind = _KINDS.get(stat.S_IFMT(entry.mode))
    if kind is None:
        return None
    return Node(
        kind=kind,
        mode=stat.S_IMODE(entry.mode),
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size if kind is NodeKind.FILE else 0,
        sha256=sha256,
        target=entry.target or b"",
        xattrs=kept_attributes(entry.xattrs),
    )


class PublishedConfiguration:
    """What one release ships, fetched as far as it is asked for."""

    def __init__(self, ref: ConfigurationRef, *, base_url: str, fetcher: Fetcher, cache: ContentCache) -> None:
        self._ref = ref
        self._url = published_url(base_url, ref.file.path)
        self._fetcher = fetcher
        self._cache = cache
        header = cache.get(ref.header_sha256)
        if header is None:
            header = fetch_bytes(fetcher, self._url, limit_bytes=ref.header_size, end=ref.header_size)
            if hashlib.sha256(header).hexdigest() != ref.header_sha256:
                raise WrongDigestError(url=self._url, part="the header")
            cache.put(ref.header_sha256, header)
        self._configuration = read_configuration(header, decoded_size=ref.decoded_size)
        self._stored = {content.sha256: content for content in self._configuration.contents}

    @property
    def configuration(self) -> Configuration:
        """Every object."""
        return self._configuration

    def content(self, sha256: bytes) -> bytes | None:
        """Return the content with this digest, or None when it is not published beside the image.

        Raises:
            NetworkError: It cannot be fetched.
            TrustError: It is not the signed one.
        """
        stored = self._stored.get(sha256)
        if stored is None:
            return None
        name = sha256.hex()
        data = self._cache.get(name)
        if data is None:
            begin = self._ref.header_size + stored.offset
            end = begin + stored.frame_size
            frame = fetch_bytes(self._fetcher, self._url, limit_bytes=stored.frame_size, start=begin, end=end)
            if hashlib.sha256(frame).digest() != stored.frame_sha256:
                raise WrongDigestError(url=self._url, part=f"the content at {begin}")
            data = decompress_frame(frame, size=stored.size)
            if hashlib.sha256(data).digest() != sha256:
                raise WrongDigestError(url=self._url, part=f"the content at {begin}")
            self._cache.put(name, data)
        return data
