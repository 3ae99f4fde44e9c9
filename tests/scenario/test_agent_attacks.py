"""Each attack on an update repository, over HTTP, against the real agent.

A thief stands in the way to the repository, and `overhaul device update` runs. It must refuse by the class that names
the attack; the running slot stays byte for byte, nothing half-written can boot, what the device trusts stays as it
was, and when the attack is over the honest repository installs. What the client alone makes of many more attacks is
in `test_trust_attacks`, and thefts of keys are in `test_key_theft`.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.certificates import write_certificate
from tests.fleet import PRODUCT, release_id
from tests.hostile import STABLE, Attack, Scene, World
from tests.loopback import LoopbackServer, serving
from tests.unit.content.delta.images import make_image, write_tree

from overhaul.agent.outcomes import Updated
from overhaul.transfer.fetcher import (
    InsecureAddressError,
    InterruptedTransferError,
    OversizeError,
    UnreachableError,
)
from overhaul.transfer.fetching import WrongDigestError
from overhaul.transfer.ranges import ShortFileError
from overhaul.transfer.settings import FetchSettings
from overhaul.trust.keyring import Keyring
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key
from overhaul.trust.refusals import (
    BadSignatureError,
    MalformedMetadataError,
    MixAndMatchError,
    RollbackError,
    StaleRepositoryError,
    WrongTargetError,
)

OLD, NEW = release_id("1.0").target_path, release_id("2.0").target_path


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, server: LoopbackServer) -> World:
    return World.make(tmp_path_factory.mktemp("world"), server)


@pytest.fixture
def scene(world: World, tmp_path: Path, server: LoopbackServer) -> Scene:
    return Scene(world, tmp_path, server)


def _arbitrary_timestamp(scene: Scene) -> None:
    scene.thief.files[TIMESTAMP_KEY] = b"{}"


def _signed_target(path: str, change: Callable[[bytes], bytes]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        key = scene.signed_key(path)
        scene.thief.files[key] = change(scene.thief.files[key])

    return prepare


def _record_of_another_release(scene: Scene) -> None:
    scene.thief.files[scene.signed_key(NEW)] = scene.thief.files[scene.signed_key(OLD)]


def _old_repository(scene: Scene) -> None:
    scene.learn_metadata()
    scene.thief.files.update(scene.first)


def _time_passes(scene: Scene) -> None:
    scene.thief.files.update(scene.first)
    scene.passed = timedelta(days=3)


def _unsigned_fast_forward(scene: Scene) -> None:
    foreign = Keyring.generate(scene.device.directory / "thief", products=[PRODUCT])
    scene.thief.files[TIMESTAMP_KEY] = scene.thief.forge(
        "timestamp", lambda signed: setattr(signed, "version", 2**31), keyring=foreign
    )


def _old_snapshot_under_the_new_name(scene: Scene) -> None:
    old = metadata_key("snapshot", scene.thief.version("snapshot") - 1)
    scene.thief.files[scene.thief.key_of("snapshot")] = scene.thief.files[old]


def _endless(place: Callable[[Scene], str]) -> Callable[[Scene], None]:
    return lambda scene: scene.server.behave(place(scene), endless=True)


def _slow(place: Callable[[Scene], str]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.fetching = FetchSettings(min_bytes_per_s=1000, min_speed_window_s=1.0)
        scene.server.behave(place(scene), trickle_s=0.02)

    return prepare


def _index(scene: Scene) -> str:
    return scene.release("2.0").image.index.path


def _frames(scene: Scene) -> str:
    return scene.release("2.0").image.packs[0].frames.path


def _pack(scene: Scene) -> str:
    return scene.release("2.0").image.packs[0].pack.path


def _content(place: Callable[[Scene], str], change: Callable[[bytes], bytes]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        path = place(scene)
        scene.thief.files[path] = change((scene.repository.public / path).read_bytes())

    return prepare


def _pack_of_another_release(scene: Scene) -> None:
    scene.thief.files[_pack(scene)] = (
        scene.repository.public / scene.release("1.0").image.packs[0].pack.path
    ).read_bytes()


def flipped(data: bytes) -> bytes:
    """Return `data` with one bit of its middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


_METADATA, _POLICY, _ALL = Scene.learn_metadata, Scene.learn_policy, Scene.learn_everything

ATTACKS = [
    Attack("arbitrary timestamp", _arbitrary_timestamp, MalformedMetadataError),
    Attack("arbitrary policy", _signed_target(STABLE, flipped), WrongTargetError, _METADATA),
    Attack("arbitrary release record", _signed_target(NEW, flipped), WrongTargetError, _POLICY),
    Attack("rollback", _old_repository, RollbackError),
    Attack("freeze", _time_passes, StaleRepositoryError),
    Attack("fast forward", _unsigned_fast_forward, BadSignatureError),
    Attack("mix and match", _old_snapshot_under_the_new_name, MixAndMatchError),
    Attack("wrong target", _record_of_another_release, WrongTargetError, _POLICY),
    Attack("endless timestamp", _endless(lambda _scene: TIMESTAMP_KEY), OversizeError),
    Attack("endless record", _endless(lambda scene: scene.signed_key(NEW)), OversizeError, _POLICY),
    Attack("endless index", _endless(_index), OversizeError, _ALL),
    Attack("endless frame table", _endless(_frames), OversizeError, _ALL),
    Attack("endless pack", _endless(_pack), WrongDigestError, _ALL, wrote=True),
    Attack("slow timestamp", _slow(lambda _scene: TIMESTAMP_KEY), InterruptedTransferError),
    Attack("slow pack", _slow(_pack), InterruptedTransferError, _ALL, wrote=True),
    Attack("corrupted index", _content(_index, flipped), WrongDigestError, _ALL),
    Attack("index cut short", _content(_index, _halved), ShortFileError, _ALL),
    Attack("corrupted frame table", _content(_frames, flipped), WrongDigestError, _ALL),
    Attack("corrupted pack", _content(_pack, flipped), WrongDigestError, _ALL, wrote=True),
    Attack("pack cut short", _content(_pack, _halved), ShortFileError, _ALL, wrote=True),
    Attack("pack of another release", _pack_of_another_release, WrongDigestError, _ALL, wrote=True),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_by_name_and_harms_nothing(scene: Scene, attack: Attack) -> None:
    scene.require_refusal(attack)


@pytest.mark.parametrize("name", ["rollback", "wrong target", "corrupted pack"])
def test_the_command_refuses_by_its_exit_code_and_installs_when_the_attack_is_over(scene: Scene, name: str) -> None:
    [attack] = [attack for attack in ATTACKS if attack.name == name]
    attack.prepare(scene)

    code, refusal = _device_update(scene)

    assert code == attack.refused_by.exit_code == 4, refusal
    assert json.loads(refusal)["error"] == attack.refused_by.__name__
    assert not json.loads(refusal)["retryable"]
    scene.require_unharmed(wrote=attack.wrote)
    scene.end_attack()
    code, told = _device_update(scene)
    assert code == 0, told
    scene.require_installed("2.0")


def _device_update(scene: Scene) -> tuple[int, str]:
    command = [sys.executable, "-m", "overhaul", "device", "update", "--json", "--config"]
    done = subprocess.run([*command, scene.device.configuration], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


# --- deltas ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ext4_world(tmp_path_factory: pytest.TempPathFactory, server: LoopbackServer) -> World:
    """Releases whose files can be found, so that there is a delta."""
    directory = tmp_path_factory.mktemp("ext4-world")
    shared = {f"usr/file-{number}": random.Random(number).randbytes(100_000) for number in range(12)}
    images = {}
    for version in ("1.0", "2.0"):
        changed = {"usr/changed": random.Random(version).randbytes(200_000)}
        tree = write_tree(directory / f"tree-{version}", {**shared, **changed})
        images[version] = make_image(tree, directory / f"{version}.ext4", size_kib=4096)
    return World.make(directory, server, images=images)


@pytest.fixture
def ext4_scene(ext4_world: World, tmp_path: Path, server: LoopbackServer) -> Scene:
    return Scene(ext4_world, tmp_path, server)


def _delta(scene: Scene) -> str:
    [delta] = scene.release("2.0").image.deltas
    return delta.file.path


def _flipped_header(data: bytes) -> bytes:
    return flipped(data[:100]) + data[100:]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda _scene: None,
        _content(_delta, flipped),
        _content(_delta, _flipped_header),
        _content(_delta, _halved),
        _endless(_delta),
    ],
    ids=["untouched", "segment", "header", "cut short", "endless"],
)
def test_a_false_delta_costs_the_delta_and_not_the_update(
    ext4_scene: Scene, request: pytest.FixtureRequest, prepare: Callable[[Scene], None]
) -> None:
    prepare(ext4_scene)

    updated = ext4_scene.update()

    assert isinstance(updated, Updated)
    assert updated.way == ("delta" if request.node.callspec.id == "untouched" else "chunks")
    ext4_scene.require_installed("2.0")


def test_a_false_delta_and_a_false_pack_are_refused(ext4_scene: Scene) -> None:
    _content(_delta, flipped)(ext4_scene)
    _content(_pack, flipped)(ext4_scene)
    ext4_scene.learn_everything()
    trusted = ext4_scene.trusted()

    with pytest.raises(WrongDigestError):
        ext4_scene.update()

    assert ext4_scene.trusted() == trusted
    ext4_scene.require_unharmed(wrote=True)
    ext4_scene.end_attack()
    ext4_scene.require_update()


# --- addresses ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("authority") / "both.pem")


@pytest.fixture
def secure(scene: Scene, certificate: Path) -> Iterator[LoopbackServer]:
    """The repository over https; the device knows the authority, and allows plain http only where a test says so."""
    with serving(scene.repository.public, certificate=certificate) as site:
        scene.configure(scene.server.url, site.url)
        scene.configure("allow_http = true", "allow_http = false")
        scene.configure('# ca_file = "/etc/overhaul/ca.pem"', f'ca_file = "{certificate}"')
        yield site


def test_plain_http_is_refused_by_default_before_a_request_is_sent(scene: Scene) -> None:
    scene.configure("allow_http = true\n", "")
    with pytest.raises(InsecureAddressError):
        scene.update()
    assert scene.server.requests == []
    scene.require_unharmed(wrote=False)

    scene.configure("[slots]", "allow_http = true\n[slots]")

    scene.require_update()


def test_https_with_the_configured_authority_needs_no_permission(scene: Scene, secure: LoopbackServer) -> None:
    scene.require_update()

    assert scene.server.requests == []
    assert secure.requests


def test_https_of_an_unknown_authority_is_refused(scene: Scene, secure: LoopbackServer, certificate: Path) -> None:
    scene.configure(f'ca_file = "{certificate}"', "")

    with pytest.raises(UnreachableError):
        scene.update()

    assert secure.requests == []
    scene.require_unharmed(wrote=False)


@pytest.mark.parametrize("place", [lambda _scene: TIMESTAMP_KEY, _pack], ids=["timestamp", "pack"])
def test_https_that_leads_to_plain_http_is_refused_even_where_that_is_allowed(
    scene: Scene, secure: LoopbackServer, place: Callable[[Scene], str]
) -> None:
    scene.configure("allow_http = false", "allow_http = true")
    path = place(scene)
    secure.behave(path, redirect=f"{scene.server.url}/{path}")

    with pytest.raises(InsecureAddressError):
        scene.update()

    assert scene.server.requests == []
    scene.require_unharmed(wrote=path != TIMESTAMP_KEY)
    secure.behaviours.clear()
    scene.require_update()
