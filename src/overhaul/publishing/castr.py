"""A casync chunk store beside a product's releases, for clients that speak casync over plain HTTP.

Nothing is compressed for it: a chunk file holds exactly the bytes of a pack's frame. The index goes beside the
store under the release's name. Both are under final names before the release can be seen; casync clients learn of
an index by its address, not from us.
"""

from overhaul.content.castr import chunk_file_name, write_castr
from overhaul.content.index import read_index
from overhaul.progress import Progress
from overhaul.release.record import Release
from overhaul.repository.layout import castr_index_path, castr_store_path, public_key
from overhaul.repository.local import LocalStorage
from overhaul.repository.packs import read_checked, read_frames_of
from overhaul.repository.storage import Storage


def write_casync_store(storage: Storage, release: Release, *, progress: Progress) -> int:
    """Write what the chunk store lacks of `release`, and its index; return how many chunk files were written."""
    index = read_checked(storage, release.image.index)
    wanted = {chunk.id for chunk in read_index(index)}
    store = public_key(castr_store_path(release.id.product))
    written = 0
    progress.begin("Writing the casync chunk store", len(wanted), "chunks")
    try:
        for pack in release.image.packs:
            frames = [frame for frame in read_frames_of(storage, pack) if frame.chunk_id in wanted]
            wanted -= {frame.chunk_id for frame in frames}
            key = public_key(pack.pack.path)
            if isinstance(storage, LocalStorage):
                # One flush for thousands of files instead of one for each.
                with (storage.root / key).open("rb") as stream:
                    written += write_castr(stream, frames, storage.root / store)
                progress.advance(len(frames))
                continue
            for frame in frames:
                name = f"{store}/{chunk_file_name(frame.chunk_id)}"
                if storage.stat(name) is None:
                    storage.put(name, storage.read(key, start=frame.offset, end=frame.end))
                    written += 1
                progress.advance(1)
    finally:
        progress.end()
    storage.put(public_key(castr_index_path(release)), index)
    return written
