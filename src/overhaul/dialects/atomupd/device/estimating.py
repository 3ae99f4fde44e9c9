"""How much an update will bring over the network, for servers that do not know it.

The index of the new image stands in its bundle. What of its chunks the running image lacks will be fetched; the index
of the running image is the seed's, as desync keeps it, or of the candidate before. Chunks come compressed, so the sum
is divided by what they usually shrink to. It is a figure for a person to read: whatever goes wrong, it stays unknown.
"""

import shutil
from pathlib import Path
from tempfile import mkdtemp

import msgspec

from overhaul.content.index import Index, read_index
from overhaul.dialects.atomupd.candidates import Candidate, Update, UpdatePath
from overhaul.dialects.atomupd.device.asking import client_fetcher
from overhaul.dialects.atomupd.device.bundle import MAX_BUNDLE_BYTES, open_bundle
from overhaul.dialects.atomupd.device.choosing import bundle_of, way_of
from overhaul.dialects.atomupd.device.progress import Tell
from overhaul.dialects.atomupd.device.rauc import read_rauc_configuration
from overhaul.dialects.atomupd.device.settings import ClientSettings
from overhaul.errors import OverhaulError
from overhaul.transfer.fetching import fetch_bytes

#: Bytes of chunks for each byte that is sent.
_COMPRESSION = 1.33


def with_sizes(update: Update, settings: ClientSettings, *, warn: Tell) -> Update:
    """Return `update` with sizes where its candidates have none and they can be estimated."""
    path = way_of(update)
    if path is None or all(candidate.image.estimated_size for candidate in path.candidates):
        return update
    try:
        base = _running_index(settings)
    except (OverhaulError, OSError) as error:
        warn(f"The sizes of updates cannot be estimated: {error}")
        return update
    estimated = []
    for candidate in path.candidates:
        sized = candidate
        if candidate.image.estimated_size == 0 and base is not None:
            try:
                index = _index_of(candidate, settings)
            except (OverhaulError, OSError) as error:
                warn(f"The size of {candidate.update_path} cannot be estimated: {error}")
                base = None
            else:
                size = estimated_bytes(index, base=base)
                sized = msgspec.structs.replace(
                    candidate, image=msgspec.structs.replace(candidate.image, estimated_size=size)
                )
                base = index
        estimated.append(sized)
    filled = UpdatePath(
        release=path.release,
        candidates=tuple(estimated),
        replacement_eol_variant=path.replacement_eol_variant,
    )
    return Update(
        minor=filled if path is update.minor else update.minor, major=filled if path is update.major else update.major
    )


def estimated_bytes(index: Index, *, base: Index) -> int:
    """Return about how many bytes bring `index` to a device that holds `base`."""
    had = {chunk.id for chunk in base}
    lacking = {chunk.id: chunk.size for chunk in index if chunk.id not in had}
    return int(sum(lacking.values()) / _COMPRESSION)


def _running_index(settings: ClientSettings) -> Index | None:
    seed = read_rauc_configuration(settings.rauc_configuration).seed_index
    return read_index(seed.read_bytes()) if seed is not None and seed.exists() else None


def _index_of(candidate: Candidate, settings: ClientSettings) -> Index:
    bundle = bundle_of(candidate, images_url=settings.images_url)
    data = fetch_bytes(client_fetcher(settings, url=bundle.url), bundle.url, limit_bytes=MAX_BUNDLE_BYTES)
    settings.runtime_directory.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(prefix=f"{bundle.build_id}-", dir=settings.runtime_directory))
    try:
        copy = work / "bundle.raucb"
        copy.write_bytes(data)
        return open_bundle(copy, url=bundle.url, keyring=settings.keyring, work=work).index
    finally:
        shutil.rmtree(work, ignore_errors=True)
