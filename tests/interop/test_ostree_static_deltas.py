"""Static deltas: real ostree applies ours, and ours are applied from its own; damaged ones make nothing."""

import random
from pathlib import Path

import pytest
from tests.gpg_keys import gpg_home
from tests.ostree_trees import BRANCH, TIME, commit_ours, make_tree, ostree

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.delta_apply import apply_part
from overhaul.dialects.ostree.delta_make import make_static_delta
from overhaul.dialects.ostree.errors import DeltaSourceMissingError, MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import FileHeader, file_checksum
from overhaul.dialects.ostree.heads import move_heads
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.dialects.ostree.objects import ObjectName, ObjectType
from overhaul.dialects.ostree.static_delta import decode_superblock, unpack_part
from overhaul.progress import Silence


class _Source:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, size: int) -> bytes:
        piece = self._content[offset : offset + size]
        assert len(piece) == size
        return piece

    def close(self) -> None:
        """Do nothing."""


class _Sink:
    def __init__(self, objects: "Objects", checksum: bytes, header: FileHeader) -> None:
        self._objects, self._checksum, self._header = objects, checksum, header
        self._content = b""

    def write(self, data: bytes | memoryview) -> None:
        self._content += data

    def finish(self) -> None:
        assert file_checksum(self._header, self._content) == self._checksum
        self._objects.made.add(ObjectName(ObjectType.FILE, self._checksum))

    def discard(self) -> None:
        """Forget."""


class Objects:
    """Takes a delta's objects in memory; old ones come from a repository."""

    def __init__(self, old: ArchiveRepository, has: set[ObjectName]) -> None:
        self._old = old
        self._has = has
        self.made: set[ObjectName] = set()

    def open_source(self, checksum: bytes) -> _Source:
        if ObjectName(ObjectType.FILE, checksum) not in self._has:
            raise DeltaSourceMissingError(checksum=checksum.hex())
        return _Source(self._old.content(checksum))

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        assert data
        self.made.add(name)

    def open_file(self, checksum: bytes, header: FileHeader, size: int) -> _Sink:
        return _Sink(self, checksum, header)


def _program(edition: int) -> bytes:
    """Return bytes that look like a program: long runs that move, with words in them that change."""
    chance = random.Random(7)
    blocks = [chance.randbytes(1000).hex().encode() for _ in range(60)]
    if edition == 2:
        blocks.insert(20, random.Random(8).randbytes(250).hex().encode())
        for number in range(0, len(blocks), 3):
            block = bytearray(blocks[number])
            for place in range(0, len(block), 97):
                block[place] = (block[place] + 4) % 256
            blocks[number] = bytes(block)
    return b"".join(blocks)


@pytest.fixture
def history(tmp_path: Path) -> tuple[ArchiveRepository, bytes, bytes]:
    """Return a repository with two commits whose files changed in every way a delta can tell."""
    ours = ArchiveRepository.create(tmp_path / "ours")
    heads = []
    for edition in (1, 2):
        tree = make_tree(tmp_path / f"tree{edition}", edition=edition)
        (tree / "usr/bin/program").write_bytes(_program(edition))
        (tree / "usr/bin/mode").write_bytes(b"its mode changes\n" * 50)
        (tree / "usr/bin/mode").chmod(0o700 if edition == 1 else 0o755)
        (tree / f"usr/lib/module-{edition}.ko").write_bytes(_program(1) + b"%d" % edition)
        (tree / "usr/lib/noise").write_bytes(random.Random(edition).randbytes(50_000))
        (tree / "usr/lib/emptied").write_bytes(b"" if edition == 2 else b"x" * 5000)
        (tree / "usr/lib/filled").write_bytes(b"" if edition == 1 else b"x" * 5000)
        heads.append(bytes.fromhex(commit_ours(ours, tree, at=TIME + edition)))
    return ours, heads[0], heads[1]


def _apply(ours: ArchiveRepository, source: bytes | None, target: bytes) -> set[ObjectName]:
    directory = ours.path / delta_directory(source, target)
    superblock = decode_superblock((directory / "superblock").read_bytes())
    assert (superblock.source, superblock.target) == (source, target)
    has = set() if source is None else ours.reachable(source)
    objects = Objects(ours, has)
    for number, part in enumerate(superblock.parts):
        data = part.inline or (directory / str(number)).read_bytes()
        apply_part(part, unpack_part(part, data, what="part"), objects, what="part")
    loose = {one.name for one in superblock.fallbacks}
    wanted = {
        name for name in ours.reachable(target) - has if name.type not in (ObjectType.COMMIT, ObjectType.COMMITMETA)
    }
    assert objects.made | loose == wanted
    return objects.made


@pytest.mark.parametrize("is_from_nothing", [False, True])
def test_ostree_pulls_with_our_deltas_and_nothing_else(
    history: tuple[ArchiveRepository, bytes, bytes], tmp_path: Path, is_from_nothing: bool
) -> None:
    ours, old, new = history
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    ostree("remote", "add", "--no-gpg-verify", "updates", f"file://{ours.path}", repo=device)
    if not is_from_nothing:
        move_heads(ours, {BRANCH: old}, signers=[], now=TIME)
        ostree("pull", "updates", BRANCH, repo=device)
    source = None if is_from_nothing else old
    made = make_static_delta(ours, source, new, workers=2, progress=Silence())
    move_heads(ours, {BRANCH: new}, signers=[], now=TIME)
    if not is_from_nothing:
        assert made.patched >= 1
        assert made.copied >= 1
        assert made.whole >= 1
    ostree("pull", "--require-static-deltas", "updates", BRANCH, repo=device)
    assert ostree("rev-parse", f"updates:{BRANCH}", repo=device).strip() == new.hex()
    ostree("fsck", repo=device)
    assert new.hex() in ostree("static-delta", "list", repo=ours.path)
    assert "Number of parts: 1" in ostree("static-delta", "show", _name(source, new), repo=ours.path)


def test_ostree_makes_of_our_delta_alone_all_objects_of_the_commit(
    history: tuple[ArchiveRepository, bytes, bytes], tmp_path: Path
) -> None:
    """`apply-offline` has nowhere to fetch a loose object from."""
    ours, old, new = history
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    ostree("pull-local", ours.path, old.hex(), repo=device)
    make_static_delta(ours, old, new, workers=2, progress=Silence())
    ostree("static-delta", "apply-offline", ours.path / delta_directory(old, new), repo=device)
    ostree("refs", "--create=whole", new.hex(), repo=device)
    ostree("fsck", repo=device)


@pytest.mark.parametrize("options", [(), ("--disable-bsdiff",), ("--inline",), ("--min-fallback-size=1",)])
@pytest.mark.parametrize("is_from_nothing", [False, True])
def test_we_apply_the_deltas_of_ostree(
    history: tuple[ArchiveRepository, bytes, bytes], options: tuple[str, ...], is_from_nothing: bool
) -> None:
    ours, old, new = history
    begin = "--empty" if is_from_nothing else f"--from={old.hex()}"
    ostree("static-delta", "generate", begin, f"--to={new.hex()}", *options, repo=ours.path)
    _apply(ours, None if is_from_nothing else old, new)


def test_our_delta_is_smaller_than_that_of_ostree(history: tuple[ArchiveRepository, bytes, bytes]) -> None:
    ours, old, new = history
    directory = ours.path / delta_directory(old, new)
    ostree("static-delta", "generate", f"--from={old.hex()}", f"--to={new.hex()}", repo=ours.path)
    theirs = sum(path.stat().st_size for path in directory.iterdir())
    made = make_static_delta(ours, old, new, workers=2, progress=Silence())
    assert made.size == sum(path.stat().st_size for path in directory.iterdir())
    assert made.size <= 1.05 * theirs
    _apply(ours, old, new)


def test_the_same_commits_give_the_same_delta(history: tuple[ArchiveRepository, bytes, bytes]) -> None:
    ours, old, new = history
    first = make_static_delta(ours, old, new, workers=1, progress=Silence())
    assert make_static_delta(ours, old, new, workers=3, progress=Silence()) == first


def test_a_delta_cut_or_changed_anywhere_makes_nothing_wrong(history: tuple[ArchiveRepository, bytes, bytes]) -> None:
    ours, old, new = history
    make_static_delta(ours, old, new, workers=2, progress=Silence())
    directory = ours.path / delta_directory(old, new)
    superblock = (directory / "superblock").read_bytes()
    part = decode_superblock(superblock).parts[0]
    data = (directory / "0").read_bytes()
    for end in range(0, len(superblock), 7):
        with pytest.raises((MalformedOstreeDataError, WrongChecksumError)):
            decode_superblock(superblock[:end])
    for end in range(0, len(data), 997):
        with pytest.raises(WrongChecksumError):
            unpack_part(part, data[:end], what="part")


def test_a_delta_whose_source_is_not_here_says_so(history: tuple[ArchiveRepository, bytes, bytes]) -> None:
    ours, old, new = history
    make_static_delta(ours, old, new, workers=2, progress=Silence())
    directory = ours.path / delta_directory(old, new)
    part = decode_superblock((directory / "superblock").read_bytes()).parts[0]
    payload = unpack_part(part, (directory / "0").read_bytes(), what="part")
    with pytest.raises(DeltaSourceMissingError):
        apply_part(part, payload, Objects(ours, set()), what="part")


def test_deltas_of_both_makers_bring_the_signatures_of_their_commit(
    history: tuple[ArchiveRepository, bytes, bytes],
) -> None:
    ours, old, new = history
    with gpg_home("good@example.org") as home:
        ostree("gpg-sign", f"--gpg-homedir={home}", new.hex(), "good@example.org", repo=ours.path)
    signed = ours.detached(new)
    assert signed
    superblock = ours.path / delta_directory(old, new) / "superblock"
    ostree("static-delta", "generate", f"--from={old.hex()}", f"--to={new.hex()}", repo=ours.path)
    assert decode_superblock(superblock.read_bytes()).detached == signed
    make_static_delta(ours, old, new, workers=2, progress=Silence())
    assert decode_superblock(superblock.read_bytes()).detached == signed


def _name(source: bytes | None, target: bytes) -> str:
    return target.hex() if source is None else f"{source.hex()}-{target.hex()}"
