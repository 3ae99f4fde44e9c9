"""The units of the server and of the desk against systemd's own judgement."""

import subprocess
from pathlib import Path

import pytest
from tests.tools import need

_UNITS = [
    Path(__file__).parents[2] / "deploy/systemd" / name for name in ("overhaul-server.service", "overhaul-desk.service")
]


@pytest.mark.parametrize("path", _UNITS, ids=lambda path: path.stem)
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path, path: Path) -> None:
    text = path.read_text()
    assert text.count("/usr/bin/overhaul ") == 1
    unit = tmp_path / path.name
    unit.write_text(text.replace("/usr/bin/overhaul ", "/bin/true "))

    checked = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("path", _UNITS, ids=lambda path: path.stem)
def test_systemd_finds_the_unit_well_shut_in(path: Path) -> None:
    judged = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", "--threshold=15", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert judged.returncode == 0, judged.stdout
