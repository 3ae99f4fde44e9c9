"""systemd itself reads the units that let a device update by itself with swupd."""

import subprocess
from pathlib import Path

import pytest
from tests.tools import need

UNITS = Path(__file__).parents[2] / "deploy/systemd"


def _said(directory: Path, unit: str) -> str:
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/usr/sbin", "SYSTEMD_UNIT_PATH": f"{directory}:/usr/lib/systemd/system:"},
    )
    return "\n".join(line for line in done.stderr.splitlines() if "swupd" in line or "cycle" in line)


@pytest.mark.parametrize("unit", ["swupd-update.service", "swupd-update.timer"])
def test_systemd_finds_nothing_against_the_swupd_unit_and_would_find_a_misspelling(tmp_path: Path, unit: str) -> None:
    for name in ("swupd-update.service", "swupd-update.timer"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/swupd", "/bin/true"))
    assert _said(tmp_path, unit) == ""
    text = (tmp_path / unit).read_text()
    (tmp_path / unit).write_text(text.replace("TimeoutStartSec", "TimeoutStart").replace("OnBootSec", "OnBoot"))
    assert "TimeoutStart" in _said(tmp_path, unit) or "OnBoot" in _said(tmp_path, unit)
