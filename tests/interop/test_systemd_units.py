"""systemd itself reads the units that devices and publishers install."""

import subprocess
from pathlib import Path

import pytest
from tests.tools import need

UNITS = Path(__file__).parents[2] / "deploy/systemd"
AGENT_UNITS = ("overhaul-agent.service", "overhaul-agent.timer", "overhaul-confirm.service")
PUBLISHER_UNITS = ("overhaul-rollout.service", "overhaul-rollout.timer")


def verified(directory: Path, unit: str) -> str:
    """Return what systemd says against a unit."""
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/usr/sbin", "SYSTEMD_UNIT_PATH": f"{directory}:/usr/lib/systemd/system:"},
    )
    return "\n".join(line for line in done.stderr.splitlines() if "overhaul" in line or "cycle" in line)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Units whose program is there: systemd looks for it."""
    for name in AGENT_UNITS + PUBLISHER_UNITS:
        text = (UNITS / name).read_text().replace("/usr/bin/overhaul", "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("unit", AGENT_UNITS + PUBLISHER_UNITS)
def test_systemd_finds_nothing_against_the_unit(installed: Path, unit: str) -> None:
    assert verified(installed, unit) == ""


def test_a_misspelt_setting_would_be_found(installed: Path) -> None:
    path = installed / "overhaul-agent.service"
    path.write_text(path.read_text().replace("TimeoutStartSec", "TimeoutStartSecs"))
    assert "TimeoutStartSecs" in verified(installed, path.name)


def test_confirming_comes_after_the_target_that_wants_it_without_a_cycle(installed: Path) -> None:
    wants = installed / "multi-user.target.wants"
    wants.mkdir()
    (wants / "overhaul-confirm.service").symlink_to("../overhaul-confirm.service")
    assert verified(installed, "multi-user.target") == ""
    assert "After=multi-user.target" in (installed / "overhaul-confirm.service").read_text().splitlines()
