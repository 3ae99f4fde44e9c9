"""Artefacts are whole or not there, and go together with the answers that point to them."""

import os
from pathlib import Path

import msgspec
import pytest

from overhaul.builds.memory import MemoryQueue
from overhaul.builds.recipe import Recipe
from overhaul.builds.results import BuildFailure, BuildResult, FailureKind
from overhaul.builds.retention import Retention, collect_garbage
from overhaul.builds.store import (
    ArtefactRecord,
    ArtefactStore,
    UnknownArtefactError,
    UnsafeOutputError,
    list_outputs,
    take_outputs,
)

RECIPE = Recipe(builder="openwrt", distribution="openwrt", version="1", target="x86/64", profile="generic")


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "artefacts")


def _add(
    store: ArtefactStore, name: str, text: str = "image", *, expires_at: float = 1e9, build_id: int = 1
) -> ArtefactRecord:
    with store.incoming(name) as directory:
        (directory / "image.bin").write_text(text)
        record = ArtefactRecord(
            artefact=name,
            build_id=build_id,
            recipe=RECIPE,
            builder_digest="0" * 64,
            files=list_outputs(directory),
            added_at=1.0,
            expires_at=expires_at,
        )
        store.add(directory, record)
    return record


def test_an_artefact_is_there_with_its_record(store: ArtefactStore) -> None:
    record = _add(store, "abc")

    assert store.record("abc") == record
    assert store.path("abc", "image.bin").read_text() == "image"
    assert (store.usage().artefacts, store.usage().size_bytes) == (1, 5)
    assert list((store.root / "incoming").iterdir()) == []


def test_a_second_build_takes_the_place_of_the_first(store: ArtefactStore) -> None:
    _add(store, "abc", "old")
    _add(store, "abc", "new")

    assert store.path("abc", "image.bin").read_text() == "new"
    assert store.usage().artefacts == 1


@pytest.mark.parametrize(
    ("artefact", "file"),
    [
        ("abc", "other.bin"),
        ("abc", "../abc/image.bin"),
        ("abc", "/etc/passwd"),
        ("../store/abc", "image.bin"),
        ("", "image.bin"),
        ("abc/", "image.bin"),
        ("none", "image.bin"),
        ("a" * 300, "image.bin"),
    ],
)
def test_nothing_else_can_be_reached(store: ArtefactStore, artefact: str, file: str) -> None:
    _add(store, "abc")
    with pytest.raises(UnknownArtefactError) as refusal:
        store.path(artefact, file)
    assert refusal.value.http_status == 404


def test_files_that_differ_from_the_record_are_not_stored(store: ArtefactStore) -> None:
    record = _add(store, "abc")
    with store.incoming("def") as directory:
        (directory / "image.bin").write_text("other")
        with pytest.raises(UnsafeOutputError):
            store.add(directory, msgspec.structs.replace(record, artefact="def"))
    assert store.record("def") is None
    assert not (store.served / "def").exists()


def test_only_plain_files_of_plain_names_are_taken(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    secret = tmp_path / "secret"
    secret.write_text("secret")

    def put(kind: str) -> None:
        if kind == "link":
            (source / "x.bin").symlink_to(secret)
        elif kind == "directory":
            (source / "x").mkdir()
        elif kind == "pipe":
            os.mkfifo(source / "x")
        else:
            (source / kind).write_text("x")

    for kind in ("link", "directory", "pipe", "a b", "-rf", ".hidden", "a\nb", "x" * 250):
        source.mkdir()
        target.mkdir()
        put(kind)
        with pytest.raises(UnsafeOutputError):
            take_outputs(source, target, limit_bytes=100)
        assert all(path.read_text() != "secret" for path in target.iterdir())
        for directory in (source, target):
            for path in directory.iterdir():
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            directory.rmdir()

    source.symlink_to(tmp_path)
    target.mkdir()
    with pytest.raises(UnsafeOutputError):
        take_outputs(source, target, limit_bytes=100)


def test_outputs_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/x").write_bytes(bytes(11))
    with pytest.raises(UnsafeOutputError):
        take_outputs(tmp_path / "a", tmp_path / "b", limit_bytes=10)
    (tmp_path / "b/x").unlink()
    take_outputs(tmp_path / "a", tmp_path / "b", limit_bytes=11)
    assert (tmp_path / "b/x").stat().st_size == 11


def _finished(queue: MemoryQueue, name: str) -> int:
    recipe = msgspec.structs.replace(RECIPE, packages=(name,))
    queue.submit(recipe, names=[name], client="c")
    lease = queue.lease(worker="w", builders=["openwrt"])
    assert lease is not None
    result = BuildResult(
        artefact=name, files=(), images=(), manifest={}, manifest_sha256="", builder_digest="", document={}, command=(),
        command_packages=(), stdout="", stderr="", build_seconds=0.0, built_at=0.0,
    )  # fmt: skip
    return queue.finish(lease, result).build_id


def test_a_collection_takes_answers_and_files_together(store: ArtefactStore) -> None:
    queue = MemoryQueue(clock=lambda: 100.0)
    ends = {"old": 50.0, "soon": 200.0, "later": 300.0, "last": 400.0}
    builds = {name: _finished(queue, name) for name in ends}
    for name, end in ends.items():
        _add(store, name, "x" * 10, expires_at=end, build_id=builds[name])

    done = collect_garbage(queue, store, now=100.0, retention=Retention(store_bytes=25))

    assert (done.artefacts, done.freed_bytes) == (2, 20)
    assert sorted(record.artefact for record in store.records()) == ["last", "later"]
    assert not (store.served / "old").exists()
    for name, build_id in builds.items():
        assert queue.find(build_id).answers(100.0) is (name in {"later", "last"})
    again = collect_garbage(queue, store, now=100.0, retention=Retention(store_bytes=25))
    assert (again.artefacts, again.leftovers) == (0, 0)


def test_artefacts_of_a_queue_that_was_made_anew_are_removed_too(store: ArtefactStore) -> None:
    _add(store, "abc", expires_at=1.0, build_id=77)
    assert collect_garbage(MemoryQueue(), store, now=2.0, retention=Retention()).artefacts == 1


def test_leftovers_go_when_nobody_can_be_working_on_them(store: ArtefactStore) -> None:
    _add(store, "abc")
    (store.root / "incoming/x.1").mkdir()
    (store.served / "without-record").mkdir()
    for left in (store.root / "incoming/x.1", store.served / "without-record"):
        os.utime(left, (1000.0, 1000.0))

    assert store.remove_leftovers(now=1060.0, older_than_s=60.0) == 0
    assert store.remove_leftovers(now=1061.0, older_than_s=60.0) == 2
    assert store.record("abc") is not None
    assert store.path("abc", "image.bin").exists()


def test_logs_go_after_their_time_and_records_stay(store: ArtefactStore) -> None:
    queue = MemoryQueue(clock=lambda: 100.0)
    queue.submit(RECIPE, names=["n"], client="c")
    lease = queue.lease(worker="w", builders=["openwrt"])
    assert lease is not None
    queue.append_log(lease, "text")
    queue.finish(lease, BuildFailure(kind=FailureKind.BUILD_FAILED, detail="d"))

    assert collect_garbage(queue, store, now=100.0, retention=Retention(logs_s=10.0)).logs == 0
    assert collect_garbage(queue, store, now=111.0, retention=Retention(logs_s=10.0)).logs == 1
    assert queue.find(1).failure is not None
