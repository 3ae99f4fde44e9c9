"""Keys in a PKCS#11 token, with SoftHSM as the token: it signs, devices accept, and its failures are one sentence."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.hostile import signed_files
from tests.published import PublishedRepository
from tests.signed_tree import Device, MemoryFetcher
from tests.tools import need

from overhaul.cli import keys as keys_cli
from overhaul.publishing.keys import OfflineSignaturesError, add_key, revoke_key, rotate_role
from overhaul.trust.tokens import MODULE_VARIABLE, TokenError, is_present, read_token_key

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL, PIN = "updates", "1234"
TOKEN = f"hsm:2?label={LABEL}"


@pytest.fixture(scope="module", autouse=True)
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A token with an ECDSA key under the number 2; the library reads its configuration once in a process."""
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        patch.setenv(MODULE_VARIABLE, MODULE)
        softhsm, pkcs11 = need("softhsm2-util"), need("pkcs11-tool")
        for arguments in (
            [softhsm, "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN],
            [pkcs11, "--module", MODULE, "--token-label", LABEL, "--login", "--pin", PIN, "--keypairgen",
             "--key-type", "EC:prime256v1", "--id", "02", "--label", "timestamp"],
        ):  # fmt: skip
            subprocess.run(arguments, check=True, capture_output=True)
        yield


def _device(made: PublishedRepository, directory: Path) -> Device:
    root = (made.directory / "root.json").read_bytes()
    device = Device(directory, "memory:", root, MemoryFetcher(signed_files(made.public)))
    device.clock.moment = made.repository.now()
    return device


def _with_pin(made: PublishedRepository) -> None:
    pin = made.repository.keys_directory / f"{LABEL}.pin"
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)


def test_a_token_takes_over_the_timestamp_and_devices_follow(tmp_path: Path) -> None:
    made = PublishedRepository(tmp_path / "repository")
    device = _device(made, tmp_path / "state")
    device.repository().refresh()
    _with_pin(made)
    [old] = made.repository.keyring.role("timestamp").keys

    add_key(made.repository, "timestamp", token=TOKEN)
    revoke_key(made.repository, old.keyid)
    (made.repository.keys_directory / old.file).unlink()
    made.publish("1.0", "b1", image_size=70_000)
    made.refresh()

    [key] = made.repository.keyring.role("timestamp").keys
    assert (key.token, key.file, key.scheme) == (TOKEN, "", "ecdsa-sha2-nistp256")
    device = _device(made, tmp_path / "state")
    device.repository().refresh()
    assert device.repository().read_target("alpha/policy/stable.json")
    assert made.repository.published().report.findings == ()


def test_a_root_key_in_a_token_signs_a_request_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = PublishedRepository(tmp_path / "repository")
    _with_pin(made)
    add_key(made.repository, "root", token=TOKEN)
    (made.repository.keys_directory / f"{LABEL}.pin").unlink()
    for key in made.repository.keyring.role("root").keys[:2]:
        (made.repository.keys_directory / key.file).unlink()
    with monkeypatch.context() as unplugged:
        unplugged.delenv(MODULE_VARIABLE)
        with pytest.raises(OfflineSignaturesError):
            rotate_role(made.repository, "timestamp")
        there = ["--repository", str(made.directory)]
        request = str(tmp_path / "q.json")
        assert CliRunner().invoke(keys_cli.command, ["sign-request", request, *there]).exit_code == 0
    monkeypatch.setenv(keys_cli.PIN_VARIABLE, PIN)

    signed = CliRunner().invoke(keys_cli.command, ["sign", request, "--token", TOKEN, "--yes"])
    assert signed.exit_code == 0, signed.exception
    imported = CliRunner().invoke(keys_cli.command, ["import", request, *there])

    assert imported.exit_code == 0, imported.exception
    _device(made, tmp_path / "state").repository().refresh()


@pytest.mark.parametrize(
    "name", ["hsm:2?label=other", f"hsm:9?label={LABEL}", "hsm:x", "pkcs11:2", "", "hsm:?label=", "hsm:2?label=%00"]
)
def test_a_token_or_key_that_is_not_there_is_one_sentence(tmp_path: Path, name: str) -> None:
    made = PublishedRepository(tmp_path / "repository")
    _with_pin(made)

    with pytest.raises(TokenError) as caught:
        add_key(made.repository, "timestamp", token=name)

    assert caught.value.exit_code == 7
    assert made.repository.keyring.following("timestamp") is None


@pytest.mark.parametrize("pin", [None, "0000", ""])
def test_a_token_without_its_pin_signs_nothing(tmp_path: Path, pin: str | None) -> None:
    made = PublishedRepository(tmp_path / "repository")
    _with_pin(made)
    add_key(made.repository, "timestamp", token=TOKEN)
    before = signed_files(made.public)
    file = made.repository.keys_directory / f"{LABEL}.pin"
    if pin is None:
        file.unlink()
    else:
        file.write_text(pin)

    with pytest.raises(TokenError):
        made.refresh()

    assert signed_files(made.public) == before


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODULE_VARIABLE, "/nonexistent/library.so")
    with pytest.raises(TokenError):
        read_token_key(TOKEN, pin=lambda _label: PIN)
    monkeypatch.delenv(MODULE_VARIABLE)
    with pytest.raises(TokenError, match=MODULE_VARIABLE):
        read_token_key(TOKEN, pin=lambda _label: PIN)
    assert not is_present(TOKEN)
