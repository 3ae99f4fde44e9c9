"""The updater's units under a real systemd: an update from the first poll to the confirmation, without cycles."""

import subprocess
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.ostree_container import CHECK, PATIENCE_S, REBOOTED, SERVICE, UNITS, container, system_files
from tests.ostree_scene import OSNAME, OstreeDevice, Publisher, quiet_directory
from tests.tools import need

from overhaul.dialects.ostree.device.state import EventKind, Phase, StateFile

EARLY = "refkit-patch-procfs.service"
_HOLDER = """[Unit]
Requires=systemd-logind.service
After=systemd-logind.service
ConditionPathExists=!/sysroot/let-go
[Service]
Type=simple
ExecStart=systemd-inhibit --what=shutdown --who=Backup "--why=writes the tape" --mode=block \\
  sh -c 'touch /sysroot/held; until [ -e /sysroot/let-go ]; do sleep 0.1; done'
"""
#: Waits for the backup to hold its lock, so that the order of the test is sure.
_AFTER_HOLDER = """[Unit]
Wants=holder.service
[Service]
ExecStartPre=sh -c 'until [ -e /sysroot/held ]; do sleep 0.1; done'
"""
_HOOK = "#!/bin/sh\nsystemd-inhibit --list --no-legend > /sysroot/inhibitors\n"


def held_back_files() -> dict[str, str | None]:
    """Return the system's files, with a backup that holds the restart back."""
    place = "usr/etc/systemd/system"
    return {
        **system_files(),
        "usr/etc/overhaul/ostree-hooks/post-apply.d/50-look": _HOOK,
        f"{place}/holder.service": _HOLDER,
        **{f"{place}/{name}.d/holder.conf": _AFTER_HOLDER for name in (SERVICE, CHECK)},
    }


@pytest.mark.timeout(1800)
def test_the_service_updates_waits_for_an_inhibitor_restarts_and_confirms() -> None:
    with quiet_directory() as place:
        publisher = Publisher(place / "publisher")
        with serving(publisher.repository) as server:
            first = publisher.publish("1", held_back_files())
            device = OstreeDevice.make(place / "device", server.url)
            old = device.install()
            hook = device.etc() / "overhaul/ostree-hooks/post-apply.d/50-look"
            hook.chmod(0o755)
            second = publisher.publish("2", held_back_files())
            states = StateFile(device.sysroot / f"ostree/deploy/{OSNAME}/var/lib/overhaul-ostree")
            with container(device, old.name) as booted:
                held = booted.read_until("restart-held")
                assert "Backup (writes the tape)" in held + booted.read_until("Backup")
                assert device.deployed() == [second, first]
                assert states.load().phase is Phase.READY
                # While it deployed, the updater itself held a shutdown back.
                assert "ostree-update" in (device.sysroot / "inhibitors").read_text()
                (device.sysroot / "let-go").touch()
                assert booted.process.wait(PATIENCE_S) == REBOOTED
            new = device.boot()
            with container(device, new.name) as booted:
                booted.read_until("confirmed 2")
                booted.read_until("up-to-date")
            state = states.load()
            assert state.phase is Phase.IDLE
            assert state.history[-1].kind is EventKind.CONFIRMED
            device.fsck()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Units whose program is there: systemd looks for it."""
    for name in (SERVICE, CHECK, EARLY):
        text = (UNITS / name).read_text().replace("/usr/bin/refkit-ostree-update", "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


def against(installed: Path, unit: str) -> list[str]:
    """Return what systemd says against a unit."""
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/usr/sbin", "SYSTEMD_UNIT_PATH": f"{installed}:/usr/lib/systemd/system:"},
    )
    return [line for line in done.stderr.splitlines() if "refkit" in line or "cycle" in line]


@pytest.mark.parametrize("unit", [SERVICE, CHECK, EARLY])
def test_systemd_finds_nothing_against_the_unit(installed: Path, unit: str) -> None:
    assert against(installed, unit) == []


def enable(installed: Path, target: str, *units: str) -> None:
    """Do what `systemctl enable` does."""
    wants = installed / f"{target}.wants"
    wants.mkdir()
    for unit in units:
        (wants / unit).symlink_to(f"../{unit}")


def test_a_device_with_both_units_enabled_starts_both(installed: Path) -> None:
    """One that is in a circle is left out at every start, and nobody would ever update that device."""
    enable(installed, "multi-user.target", SERVICE, CHECK)
    assert against(installed, "multi-user.target") == []
    (installed / SERVICE).write_text((installed / SERVICE).read_text().replace(" multi-user.target refkit", " refkit"))
    assert any("deleted to break" in line for line in against(installed, "multi-user.target"))


def test_the_command_line_is_patched_before_the_system_starts_and_without_a_cycle(installed: Path) -> None:
    enable(installed, "sysinit.target", EARLY)
    assert against(installed, "sysinit.target") == []
    # An ordinary unit, which comes after sysinit.target, would be a cycle, and systemd would leave it out.
    (installed / EARLY).write_text((installed / EARLY).read_text().replace("DefaultDependencies=no\n", ""))
    assert against(installed, "sysinit.target") != []
