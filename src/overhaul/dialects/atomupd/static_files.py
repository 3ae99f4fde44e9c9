"""Writes a static tree of answers over the one that is there, touching only what has changed for devices.

A name never holds half a file, at no moment and after no power cut: all new files are written beside their names,
flushed together, and then renamed. A file that differs from its new content only in estimated sizes stays as it is,
so that the caches between server and devices stay warm. Old files that are no JSON at all are replaced as well.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.dialects.atomupd.candidates import UnreadableUpdateError, decode_update
from overhaul.dialects.atomupd.catalogue import UnusablePoolError
from overhaul.dialects.atomupd.static_tree import Estimate, StaticAnswer, StaticTree
from overhaul.host.files import sync_file_system

_LOGGER = logging.getLogger(__name__)
_SIZE = re.compile(rb'("estimated_size": )[0-9]+')
#: An answer is a few kilobytes; a file that is longer is none.
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class StaticChange:
    """What a run did to a tree; paths relative to it."""

    written: tuple[str, ...]
    unchanged: int
    #: Files that are answers for nobody.
    stale: tuple[str, ...]
    removed: tuple[str, ...]


def write_static_tree(root: Path, tree: StaticTree, *, estimate: Estimate, remove_stale: bool) -> StaticChange:
    """Make the files below `root` those of `tree`; stale ones are removed only when asked.

    Raises:
        UnusablePoolError: A file stands where a shadow checkpoint must have none; nothing was written.
    """
    in_the_way = sorted(path for path in tree.forbidden if (root / path).exists())
    if in_the_way:
        raise UnusablePoolError(
            tuple(f"{path} is the answer for an image that became a shadow checkpoint" for path in in_the_way)
        )
    new: dict[str, bytes] = {}
    for path, answer in tree.answers.items():
        old = _read(root, path, expected=len(answer.data))
        if old != answer.data and not _is_same_but_for_sizes(old, answer, path):
            new[path] = answer.with_sizes(estimate)
    new.update({path: data for path, data in tree.others.items() if _read(root, path) != data})
    _write_together(root, new)
    # Most runs change nothing, and then there is nothing new to tell about what lies around.
    stale = tuple(sorted(_stale(root, tree))) if new or remove_stale else ()
    removed = tuple(path for path in stale if remove_stale and _remove_answer(root, path))
    return StaticChange(
        written=tuple(new),
        unchanged=len(tree.answers) + len(tree.others) - len(new),
        stale=tuple(path for path in stale if path not in set(removed)),
        removed=removed,
    )


def _read(root: Path, path: str, *, expected: int = 4096) -> bytes | None:
    """Return a file's bytes, with one read where it has at most the `expected` length."""
    try:
        descriptor = os.open(f"{root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = os.read(descriptor, expected + 1)
        if len(data) > expected:
            data += os.read(descriptor, min(os.fstat(descriptor).st_size, _MAX_BYTES))
    except OSError:
        return None
    else:
        return data
    finally:
        os.close(descriptor)


def _is_same_but_for_sizes(old: bytes | None, answer: StaticAnswer, path: str) -> bool:
    if old is None:
        return False
    if _SIZE.sub(rb"\g<1>0", old) == answer.data:
        return True
    try:
        document: object = msgspec.json.decode(old)
        wanted: object = msgspec.json.decode(answer.data)
        decode_update(old)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, UnreadableUpdateError):
        _LOGGER.warning("%s held no update document and is replaced", path)
        return False
    # The same answer may have been written with other blanks.
    return bool(_without_sizes(document) == wanted)


def _without_sizes(document: object) -> object:
    if isinstance(document, list):
        return [_without_sizes(part) for part in document]
    if isinstance(document, dict):
        return {name: 0 if name == "estimated_size" else _without_sizes(part) for name, part in document.items()}
    return document


def _write_together(root: Path, files: Mapping[str, bytes]) -> None:
    if not files:
        return
    renames: dict[str, str] = {}
    made: set[str] = set()
    try:
        for path, data in files.items():
            directory, _slash, name = path.rpartition("/")
            if directory not in made:
                _make_directory(f"{root}/{directory}")
                made.add(directory)
            # One writer at a time holds the tree, so a run that was killed leaves what the next one writes over.
            temporary = f"{root}/{directory}/.{name}.tmp"
            renames[temporary] = f"{root}/{path}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
        sync_file_system(root)
        for temporary, final in renames.items():
            os.replace(temporary, final)
    except BaseException:
        for temporary in renames:
            Path(temporary).unlink(missing_ok=True)
        raise
    sync_file_system(root)


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path)  # mostly only the last part is missing, and asking for each part costs most
    except FileExistsError:
        return
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)


def _stale(root: Path, tree: StaticTree) -> Iterator[str]:
    """Yield the answers below the directories of this tree's variants that belong to nothing in it."""
    # Fallback files lie highest, in the directory of a variant; the versions lie below it, also those that are gone.
    directories = {path.rpartition("/")[0] for path in tree.answers}
    waiting = sorted(path for path in directories if not any(above in directories for above in _above(path)))
    while waiting:
        directory = waiting.pop()
        try:
            names = os.listdir(f"{root}/{directory}")
        except OSError:
            continue
        for name in names:
            path = f"{directory}/{name}"
            if name.endswith(".json"):
                if path not in tree.answers and not name.startswith("."):
                    yield path
            elif path in directories or (not name.startswith(".") and os.path.isdir(f"{root}/{path}")):
                waiting.append(path)


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _remove_answer(root: Path, path: str) -> bool:
    """Remove a stale file if it is an answer; what a person put there is left alone."""
    data = _read(root, path)
    try:
        if data is None or (data.strip() != b"{}" and not decode_update(data)):
            return False
    except UnreadableUpdateError:
        return False
    (root / path).unlink(missing_ok=True)
    return True
