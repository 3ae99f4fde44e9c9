"""Removing what no device needs any more from a repository that is published.

A device on any commit needs the objects of the commit its branch names, and the deltas to it. It does not need its
own. Kept are therefore, of every ref (branches and releases): its commit, `depth` of its parents, and every parent
younger than `keep_s`, for clients in the middle of a pull and for deltas that are made later. Release refs (see
`publish.py`) that are older than both limits, and that no branch's kept history has, go with their objects.

Deltas go when a commit of theirs goes, or when their target is no branch's commit and they are older than `keep_s`.
OSTree's exclusive lock is held; refs go first, then commits, then what they needed, so that a run that dies leaves
only what nobody refers to, and is simply run again.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.heads import RELEASES
from overhaul.dialects.ostree.layout import object_path, parse_delta_directory
from overhaul.dialects.ostree.objects import ObjectName, ObjectType


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What goes, or would go."""

    commits: tuple[str, ...]
    refs: tuple[str, ...]
    deltas: tuple[str, ...]
    objects: int
    #: Bytes of objects and deltas.
    size: int
    kept_commits: int


def prune(repository: ArchiveRepository, *, depth: int, keep_s: float, now: float, dry_run: bool = False) -> Pruned:
    """Remove what the module's text says, or only tell what that would be; the summary has to be written afterwards.

    Our own lock is held by the caller (`ArchiveRepository.writing`).

    Raises:
        MissingOstreeObjectError, WrongChecksumError: The repository is damaged; nothing was removed.
    """
    with repository.alone():
        branches = repository.branches()
        shown = {name: commit for name, commit in branches.items() if not _is_release(name)}
        kept = _kept(repository, shown.values(), depth=depth, younger_than=now - keep_s)
        released = {name: commit for name, commit in branches.items() if _is_release(name)}
        # The last written release of a variant is the next one's parent.
        kept |= {commit for name, commit in released.items() if name.startswith(f"{RELEASES}-newest/")}
        kept |= {commit for commit in released.values() if repository.commit(commit).timestamp >= now - keep_s}
        refs = tuple(sorted(name for name, commit in released.items() if commit not in kept))
        needed = _needed(repository, kept | _foreign(repository))
        objects = sorted(repository.present() - needed, key=lambda name: name.type is not ObjectType.COMMIT)
        deltas = _old_deltas(repository, kept, set(shown.values()), older_than=now - keep_s)
        size = sum((repository.path / object_path(name)).stat().st_size for name in objects)
        size += sum(file.stat().st_size for delta in deltas for file in delta.iterdir())
        if not dry_run:
            _remove(repository, refs, deltas, objects)
    return Pruned(
        commits=tuple(name.checksum.hex() for name in objects if name.type is ObjectType.COMMIT),
        refs=refs,
        deltas=tuple(delta.relative_to(repository.path).as_posix() for delta in deltas),
        objects=len(objects),
        size=size,
        kept_commits=len(kept),
    )


def _is_release(branch: str) -> bool:
    return branch.startswith((f"{RELEASES}/", f"{RELEASES}-newest/"))


def _kept(repository: ArchiveRepository, heads: Iterable[bytes], *, depth: int, younger_than: float) -> set[bytes]:
    kept: set[bytes] = set()
    for head in heads:
        commit: bytes | None = head
        steps = 0
        while commit is not None and repository.has(ObjectName(ObjectType.COMMIT, commit)):
            held = repository.commit(commit)
            if steps > depth and held.timestamp < younger_than:
                break
            kept.add(commit)
            commit = held.parent
            steps += 1
    return kept


def _foreign(repository: ArchiveRepository) -> set[bytes]:
    """Return the commits of refs that are not local branches: a real `ostree` may have pulled into the repository."""
    found = set()
    for place in ("remotes", "mirrors"):
        for path in (repository.path / "refs" / place).rglob("*"):
            if path.is_file():
                text = path.read_text(encoding="ascii").strip()
                if repository.has(ObjectName(ObjectType.COMMIT, bytes.fromhex(text))):
                    found.add(bytes.fromhex(text))
    return found


def _needed(repository: ArchiveRepository, commits: Iterable[bytes]) -> set[ObjectName]:
    needed: set[ObjectName] = set()
    for commit in sorted(commits):
        repository.reachable(commit, known=needed)
    return needed


def _old_deltas(repository: ArchiveRepository, kept: set[bytes], shown: set[bytes], *, older_than: float) -> list[Path]:
    found = []
    for path in sorted((repository.path / "deltas").glob("*/*")):
        ends = parse_delta_directory(path.relative_to(repository.path).as_posix())
        if ends is None:
            continue
        source, target = ends
        is_lost = target not in kept or (source is not None and source not in kept)
        if is_lost or (target not in shown and path.stat().st_mtime < older_than):
            found.append(path)
    return found


def _remove(
    repository: ArchiveRepository, refs: Iterable[str], deltas: Iterable[Path], objects: Iterable[ObjectName]
) -> None:
    for ref in refs:
        repository.remove_branch(ref)
    for delta in deltas:
        shutil.rmtree(delta)
    for name in objects:
        (repository.path / object_path(name)).unlink()
