"""How much a device downloads to get from one image to another, estimated from the two bundles' chunk indexes.

A casync bundle holds the index of its root file system. The chunks of the new index that the old one lacks, each
counted once and divided by how well chunks usually compress, are the estimate. Where the publisher left
`STEM.chunks_details.json` beside an image and desync is installed, it is asked for the compressed sizes instead.
Whatever fails, the size is unknown, which is 0; an estimate never stops anything.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from overhaul.content.index import MalformedIndexError, read_index
from overhaul.dialects.atomupd.catalogue import Entry
from overhaul.dialects.atomupd.pool import DETAILS_SUFFIX
from overhaul.host.processes import ProgramFailedError, ProgramMissingError, run

_LOGGER = logging.getLogger(__name__)
#: The usual ratio between a chunk and its compressed form.
_COMPRESSION = 1.33
_SQUASHFS_MAGIC = b"hsqs"
_INDEX_NAME = "rootfs.img.caibx"
_EXTRACT_TIMEOUT_S = 120.0
#: Indexes kept in memory; one of a 5 GiB image is about 10 MB there.
_REMEMBERED = 160


def chunk_sizes(index: bytes) -> dict[bytes, int]:
    """Return the size of each chunk of an image by its id; raise `MalformedIndexError` when `index` is none."""
    return {chunk.id: chunk.size for chunk in read_index(index)}


def missing_bytes(wanted: Mapping[bytes, int], there: Mapping[bytes, int]) -> int:
    """Return how much is downloaded for the chunks of `wanted` that are not `there`."""
    return int(sum(size for identity, size in wanted.items() if identity not in there) / _COMPRESSION)


class SizeEstimator:
    """Estimates sizes between the images of one pool; indexes are extracted once."""

    def __init__(self, pool: Path, *, rauc_config: Path) -> None:
        self._pool = pool
        self._rauc_config = rauc_config
        self._works = True
        self._chunks = lru_cache(maxsize=_REMEMBERED)(self._read_chunks)

    def __call__(self, old: Entry, new: Entry) -> int:
        """Return the bytes to download, or 0 when they cannot be told."""
        if not old.update_path or not self._works:
            return 0
        try:
            return self._details(old, new) if new.has_details else self._missing_bytes(old, new)
        except ProgramMissingError as error:
            self._works = False
            _LOGGER.warning("sizes are not estimated: %s", error)
        except (ProgramFailedError, MalformedIndexError, OSError, ValueError, KeyError) as error:
            _LOGGER.info("the size from %s to %s is unknown: %s", old.stem, new.stem, error)
        return 0

    def _missing_bytes(self, old: Entry, new: Entry) -> int:
        wanted, there = self._chunks(*self._stamp(new)), self._chunks(*self._stamp(old))
        return missing_bytes(wanted, there)

    def _stamp(self, entry: Entry) -> tuple[str, int]:
        return entry.update_path, (self._pool / entry.update_path).stat().st_mtime_ns

    def _read_chunks(self, update_path: str, _mtime_ns: int) -> Mapping[bytes, int]:
        with tempfile.TemporaryDirectory(prefix="overhaul-atomupd-") as directory:
            return chunk_sizes(self._extract(update_path, Path(directory)).read_bytes())

    def _extract(self, update_path: str, directory: Path) -> Path:
        bundle = self._pool / update_path
        with bundle.open("rb") as stream:
            if stream.read(4) != _SQUASHFS_MAGIC:
                raise ValueError(f"{update_path} is no bundle")
        directory.mkdir(exist_ok=True)
        target = directory / "bundle"
        config = ["--conf", str(self._rauc_config)] if self._rauc_config.exists() else []
        argv: list[str | Path] = ["rauc", "extract", *config, "--trust-environment", bundle, target]
        run(argv, timeout_s=_EXTRACT_TIMEOUT_S)
        return target / _INDEX_NAME

    def _details(self, old: Entry, new: Entry) -> int:
        with tempfile.TemporaryDirectory(prefix="overhaul-atomupd-") as directory:
            old_index = self._extract(old.update_path, Path(directory, "old"))
            new_index = self._extract(new.update_path, Path(directory, "new"))
            details = self._pool / (new.stem + DETAILS_SUFFIX)
            argv: list[str | Path] = ["desync", "info", "--seed", old_index, "--chunks-info", details, new_index]
            try:
                said = run(argv, timeout_s=_EXTRACT_TIMEOUT_S)
            except ProgramMissingError:
                return self._missing_bytes(old, new)
        return int(json.loads(said.stdout)["dedup-size-not-in-seed-nor-cache-compressed"])
