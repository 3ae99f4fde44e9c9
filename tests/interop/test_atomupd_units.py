"""systemd itself reads the unit that runs a query server."""

import subprocess
from pathlib import Path

from tests.tools import need

_UNIT = Path(__file__).parents[2] / "deploy/systemd/steamos-atomupd-server@.service"


def test_systemd_finds_nothing_against_the_server_unit(tmp_path: Path) -> None:
    text = _UNIT.read_text()
    assert "ExecStart=/usr/bin/steamos-atomupd-server -c %i.conf\n" in text
    installed = tmp_path / "steamos-atomupd-server@fleet.service"
    installed.write_text(text.replace("/usr/bin/steamos-atomupd-server", "/bin/true"))
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", installed],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/usr/sbin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system:"},
    )

    assert [line for line in done.stderr.splitlines() if "steamos" in line] == []
