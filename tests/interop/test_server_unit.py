"""The unit of the server against systemd's own judgement."""

import subprocess
from pathlib import Path

from tests.tools import need

_UNIT = Path(__file__).parents[2] / "deploy/systemd/overhaul-server.service"


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    text = _UNIT.read_text()
    assert text.count("/usr/bin/overhaul ") == 1
    unit = tmp_path / _UNIT.name
    unit.write_text(text.replace("/usr/bin/overhaul ", "/bin/true "))

    checked = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def test_systemd_finds_the_unit_well_shut_in() -> None:
    judged = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", "--threshold=15", "--no-pager", str(_UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert judged.returncode == 0, judged.stdout
