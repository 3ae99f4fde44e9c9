"""What a device reads from its own disk, where power cuts, bad blocks and hands leave anything."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.boot import BootControlError
from overhaul.install.countdown import parse_variables
from overhaul.install.envblock import MalformedEnvironmentError, read_block, write_block
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot
from overhaul.install.settings import SettingsError, parse_settings
from overhaul.install.state import (
    DeviceState,
    Event,
    EventKind,
    Phase,
    RefusedVersion,
    SlotContent,
    StateFile,
    Target,
    fresh_state,
)
from overhaul.install.statefile import StateUnreadableError
from overhaul.policy.floors import KnownFloor
from overhaul.release.record import ReleaseId
from tests.fuzz.mutations import fuzzing, judged, mutated, outside_bytes, spoilt_json, spoilt_lines

_BLOCK = write_block({"ORDER": "A B", "A_OK": "1", "B_TRY": "3", "other": "a\\b\nc", "menu": "x" * 60})
_SHORT_BLOCK = write_block({"ORDER": "A B", "x": "\\"}, size=512)

_CONTENT = SlotContent(
    release=ReleaseId(product="weather", variant="lite", arch="amd64", version="1.0", build_id="1"),
    index_sha256="ab" * 32,
    image_size=1 << 31,
)
_STATE = msgspec.json.encode(
    DeviceState(
        phase=Phase.TRIAL,
        rollout_id="0f" * 16,
        slots={"A": _CONTENT, "B": _CONTENT},
        target=Target(slot="B", content=_CONTENT, fallback="A", urgent=True, armed_in_boot="x"),
        refused=(RefusedVersion(version="1.1", build_id="2", reason="unhealthy", at=1),),
        floor=KnownFloor(
            product="weather", channel="stable", variant="lite", arch="amd64", minimum="1", keyids=("a", "b")
        ),
        history=(Event(at=1, kind=EventKind.STARTED, slot="B", version="1.1", build_id="2"),),
    )
)
_SETTINGS = """\
product = "weather"
variant = "lite"
arch = "amd64"
channel = "stable"
version = "1.0"
root_metadata = "root.json"
[repository]
urls = ["https://one.example/repo/", "https://two.example/repo"]
allow_http = false
proxy = ""
max_bytes_per_s = 0
ca_file = "ca.pem"
[slots]
A = "/dev/a"
B = "/dev/b"
[boot]
backend = "grub"
attempts = 3
[health]
commands = ["true", ["true", "-v"]]
units = ["ssh.service"]
budget_s = 300.0
retry_s = 1.5
[reboot]
policy = "logind"
window = "02:00-05:00"
inhibitor_wait_s = 30.0
[limits]
memory_bytes = 67108864
[reports]
url = "https://one.example/api/v1/reports"
"""


@fuzzing(210)
@given(outside_bytes(_BLOCK, _SHORT_BLOCK) | mutated(_BLOCK, _SHORT_BLOCK, places=range(130)))
def test_an_environment_block_is_read_or_refused_and_written_back_as_it_was_read(data: bytes) -> None:
    variables = judged(lambda: read_block(data), refusal=MalformedEnvironmentError)
    if variables is None:
        return
    parse_variables(variables, ("A", "B"))
    written = judged(lambda: write_block(variables, size=len(data)), refusal=MalformedEnvironmentError)
    if written is not None:
        assert len(written) == len(data)
        assert read_block(written) == variables


@fuzzing(60)
@given(data=outside_bytes(_BLOCK, _SHORT_BLOCK))
def test_a_damaged_environment_block_is_changed_or_refused_as_a_whole(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "grubenv"
    path.write_bytes(data)
    boot = GrubBoot(path, {"A": Path("/dev/a"), "B": Path("/dev/b")})
    judged(lambda: boot.try_next("B", attempts=3), refusal=BootControlError)
    if path.read_bytes() != data:
        assert boot.primary() == "B"
        assert path.stat().st_size == len(data)


@fuzzing(120)
@given(st.data())
def test_a_boot_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "boot.json"
    path.unlink(missing_ok=True)
    boot = FileBoot(path, ("A", "B"))
    boot.try_next("B", attempts=3)
    path.write_bytes(data.draw(spoilt_json(path.read_bytes())))
    if judged(boot.booted, refusal=BootControlError) is not None:
        assert boot.primary() in {"A", "B"}
        boot.mark_good("A")
        boot.simulate_boot()


@fuzzing(150)
@given(data=spoilt_json(_STATE, msgspec.json.encode(fresh_state())))
def test_a_state_file_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    file = StateFile(tmp_path)
    file.path.write_bytes(data)
    state = judged(file.load, refusal=StateUnreadableError)
    if state is None:
        # What cannot be read is kept for whoever looks at it.
        assert file.path.read_bytes() == data
    else:
        file.save(state)
        assert file.load() == state


@fuzzing(90)
@given(spoilt_lines(_SETTINGS) | outside_bytes(_SETTINGS.encode()))
def test_a_device_configuration_is_read_or_refused(data: bytes) -> None:
    settings = judged(lambda: parse_settings(data, Path("/etc/overhaul/device.toml")), refusal=SettingsError)
    if settings is None:
        return
    assert len(settings.slots) >= 2
    assert all(path.is_absolute() for path in settings.slot_paths.values())
    assert settings.window is None or str(settings.window)
    health, reboot = settings.health, settings.reboot
    for seconds in (health.budget_s, health.retry_s, reboot.inhibitor_wait_s):
        # A deadline is the clock's time and this; it must be one that the system can wait for.
        assert 0 <= seconds < 1e10


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"other=y\\", "does not end"), (b"a\\b=1\n", "backslash"), (b"a\\\\=1\n", "backslash")],
)
def test_a_line_that_grub_would_read_otherwise_is_refused(line: bytes, reason: str) -> None:
    # An end inside an escape was none, and a name was written back without its backslash.
    block = b"# GRUB Environment Block\n" + b"A_OK=1\n"
    block += b"#" * (510 - len(block) - len(line)) + b"#\n" + line
    with pytest.raises(MalformedEnvironmentError, match=reason):
        read_block(block)
    with pytest.raises(MalformedEnvironmentError, match="no name"):
        write_block({"a\\b": "1"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("budget_s = 300.0", "budget_s = inf"),
        ("budget_s = 300.0", "budget_s = 1e10"),
        ("inhibitor_wait_s = 30.0", "inhibitor_wait_s = inf"),
        ('commands = ["true", ["true", "-v"]]', "commands = [[]]"),
        ('commands = ["true", ["true", "-v"]]', 'commands = ["a\\u0000b"]'),
        ('A = "/dev/a"', 'A = "/dev/a\\u0000"'),
        ('"https://two.example/repo"', '"https://["'),
        ('"https://two.example/repo"', '"https://"'),
        ('url = "https://one.example/api/v1/reports"', 'url = "https://[::1"'),
    ],
)
def test_what_no_system_call_takes_is_refused_when_the_configuration_is_read(old: str, new: str) -> None:
    assert old in _SETTINGS
    with pytest.raises(SettingsError):
        parse_settings(_SETTINGS.replace(old, new).encode(), Path("/etc/overhaul/device.toml"))
