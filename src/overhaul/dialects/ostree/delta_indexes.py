"""Delta indexes: for each commit that deltas lead to, one small file that lists them.

    `a{sv}` with the one key `ostree.static-deltas`, which holds what the summary holds under that key

A summary that says there are indexes makes newer clients ask for the index of the commit they want instead of probing
for one delta. They do not look for deltas elsewhere then, so the indexes have to be right before such a summary is
shown: index first, then summary. A client that finds no index takes the objects one by one.

The client of Debian 12 reads them, `ostree static-delta reindex` writes them, and both do with those made here.
"""

from collections import defaultdict
from collections.abc import Mapping

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.gvariant import encode
from overhaul.dialects.ostree.layout import DELTA_INDEXES, delta_index_path
from overhaul.dialects.ostree.summary import DELTAS_KEY, Deltas, encode_deltas
from overhaul.host.files import make_directory, replace_bytes, sync_directory


def encode_delta_index(deltas: Deltas) -> bytes:
    """Return the bytes of the index that lists `deltas`, which all lead to one commit."""
    return encode("a{sv}", [(DELTAS_KEY, encode_deltas(deltas))])


def write_delta_indexes(repository: ArchiveRepository, deltas: Deltas) -> None:
    """Let the indexes list `deltas`, the repository's, and nothing else; what is right already is left alone.

    The caller holds the repository's exclusive lock.
    """
    wanted = {repository.path / path: data for path, data in _indexes(deltas).items()}
    for path, data in wanted.items():
        if not path.is_file() or path.read_bytes() != data:
            make_directory(path.parent)
            replace_bytes(path, data)
    for path in sorted((repository.path / DELTA_INDEXES).glob("*/*.index")):
        if path not in wanted:
            path.unlink()
            sync_directory(path.parent)


def _indexes(deltas: Deltas) -> Mapping[str, bytes]:
    by_target: defaultdict[bytes, dict[tuple[bytes | None, bytes], bytes]] = defaultdict(dict)
    for ends, digest in deltas.items():
        by_target[ends[1]][ends] = digest
    return {delta_index_path(target): encode_delta_index(found) for target, found in sorted(by_target.items())}
