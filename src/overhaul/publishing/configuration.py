"""What a release ships below /etc, published beside its image so that devices know it before they fetch anything."""

import hashlib
import mmap
import stat
from pathlib import Path

import msgspec

from overhaul.content.configuration import node_of, write_configuration
from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4_tree import Ext4Folder
from overhaul.content.tree import TreeEntry, UnreadableTreeError, read_files, scan_tree
from overhaul.publishing.source import NoTreeError, SourceImage, tree_of
from overhaul.release.configuration import MAX_CONTENT, Node
from overhaul.release.record import ConfigurationRef
from overhaul.repository.layout import ContentKind, content_ref_of, public_key
from overhaul.repository.storage import Storage

_FOLDER = b"etc"


def store_configuration(storage: Storage, image: SourceImage, *, work: Path) -> ConfigurationRef | msgspec.UnsetType:
    """Store what `image` has below /etc; unset where it has none, or where its files cannot be looked at here."""
    try:
        found = _read_ext4(image.path) if image.filesystem == "ext4" else _read_mounted(image, work=work)
    except (NoTreeError, UnsuitableImageError, UnreadableTreeError):
        return msgspec.UNSET
    nodes, contents = found
    if not nodes:
        return msgspec.UNSET
    written = write_configuration(nodes, contents)
    ref = content_ref_of(ContentKind.CONFIGURATION, written.data)
    storage.put(public_key(ref.path), written.data)
    return ConfigurationRef(
        file=ref,
        header_size=written.header_size,
        header_sha256=hashlib.sha256(written.data[: written.header_size]).hexdigest(),
        decoded_size=written.decoded_size,
    )


_Found = tuple[dict[bytes, Node], dict[bytes, bytes]]


def _read_ext4(image: Path) -> _Found:
    """Read the image and not the tree it was made of: the image is what devices get."""
    nodes: dict[bytes, Node] = {}
    contents: dict[bytes, bytes] = {}
    with image.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
        folder = Ext4Folder(data, _FOLDER, image=image.name)
        for path, one in folder.objects.items():
            digest = None
            if stat.S_ISREG(one.mode):
                content = folder.read(one)
                digest = hashlib.sha256(content).digest()
                if len(content) <= MAX_CONTENT:
                    contents[digest] = content
            node = node_of(one, digest)
            if node is not None:
                nodes[path] = node
    return nodes, contents


def _read_mounted(image: SourceImage, *, work: Path) -> _Found:
    contents: dict[bytes, bytes] = {}
    digests: dict[bytes, bytes] = {}

    def take(entry: TreeEntry, content: memoryview) -> None:
        digests[entry.path] = hashlib.sha256(content).digest()
        if len(content) <= MAX_CONTENT:
            contents[digests[entry.path]] = bytes(content)

    with tree_of(image, work=work) as tree:
        etc = tree / "etc"
        if etc.is_symlink() or not etc.is_dir():
            return {}, {}
        entries = scan_tree(etc)
        read_files(etc, entries, [take], workers=1)
    nodes = {entry.path: node for entry in entries if (node := node_of(entry, digests.get(entry.path))) is not None}
    return nodes, contents
