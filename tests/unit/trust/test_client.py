"""What the client promises beside refusing attacks."""

import builtins
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.signed_tree import STABLE, Device, MemoryFetcher, SignedTree

from overhaul.trust.refusals import UnknownTargetError
from overhaul.trust.roles import UnownedPathError


def test_a_poll_does_not_load_python_tuf() -> None:
    """An unchanged poll is what a device does most, and the library is the larger part of its memory."""
    program = (
        "import sys; import overhaul.trust.client, overhaul.trust.keyring; "
        "print([name for name in ('tuf', 'securesystemslib', 'cryptography') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout == "[]\n"


def test_only_the_targets_read_last_are_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("kept")
    tree = SignedTree(directory / "keys")
    paths = [f"alpha/policy/channel-{number}.json" for number in range(20)]
    for path in paths:
        tree.put(path, path.encode())
    device = Device(directory / "state", "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))
    repository = device.repository()
    repository.refresh()
    for path in paths:
        assert repository.read_target(path) == path.encode()

    assert len(list((directory / "state" / "targets").iterdir())) == 16


def test_files_on_bad_sectors_are_fetched_and_written_anew(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("sectors")
    tree = SignedTree(directory / "keys")
    tree.put(STABLE, b"policy")
    state = directory / "state"
    device = Device(state, "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))

    def update() -> bytes:
        repository = device.repository()
        if repository.poll():
            repository.refresh()
        return repository.read_target(STABLE)

    assert update() == b"policy"
    real, bad = io.open, [Path()]

    def with_bad_sector(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if "r" in mode and file == bad[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return real(file, mode, *arguments, **options)  # type: ignore[call-overload]  # passed on as it came

    files = [path for path in state.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) >= 7
    with monkeypatch.context() as patched:
        for module in (io, builtins):
            patched.setattr(module, "open", with_bad_sector)
        for path in files:
            bad[0] = path
            assert update() == b"policy", path
    assert update() == b"policy"


def test_names_with_unusual_signs_are_carried_through(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("signs")
    tree = SignedTree(directory / "keys", products=["alpha", "c++~os"])
    path = "c++~os/releases/a+b/x~1/1.0+git~3/2026+1.json"
    tree.put(path, b"release")
    served = MemoryFetcher({key.replace("+", "%2B"): data for key, data in tree.files.items()})
    quoted = {**{key.replace("~", "%7E"): data for key, data in served.files.items()}, **served.files}
    root = tree.files["metadata/1.root.json"]
    device = Device(directory / "state", "memory:", root, MemoryFetcher(quoted))
    repository = device.repository()
    repository.refresh()

    assert repository.read_target(path) == b"release"
    assert device.repository().read_target(path) == b"release"


def test_the_signers_of_a_path_are_the_keys_its_role_has_now(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("signers")
    tree = SignedTree(directory / "keys")
    tree.put(STABLE, b"stable")
    device = Device(directory / "state", "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))
    first = tuple(key.keyid for key in tree.keyring.role("alpha-policy").keys)
    assert device.repository().signers_of(STABLE) == first

    tree.rotate("alpha-policy")
    repository = device.repository()
    repository.refresh()

    second = tuple(key.keyid for key in tree.keyring.role("alpha-policy").keys)
    assert repository.signers_of(STABLE) == second != first
    with pytest.raises(UnknownTargetError):
        repository.signers_of("unheard-of/policy/stable.json")


def test_a_path_no_role_owns_is_the_callers_mistake(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("unowned")
    tree = SignedTree(directory / "keys")
    device = Device(directory / "state", "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))

    with pytest.raises(UnownedPathError):
        device.repository().read_target(f"{STABLE}/../x")
