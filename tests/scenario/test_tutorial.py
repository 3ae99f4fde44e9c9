"""The tutorial is true: its commands run, in their order, on a machine that has nothing but Overhaul."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.ports import reserved_port
from tests.tools import need

_TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_every_command_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """Should end with the device on 1.1, waiting for its restart."""
    need("mkfs.ext4")
    need("curl")
    blocks = re.findall(r"^```sh\n(.*?)^```", _TUTORIAL.read_text(), flags=re.MULTILINE | re.DOTALL)
    commands = "\n".join(["trap 'kill $server 2>/dev/null || :' EXIT", *blocks])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    with reserved_port() as port:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands.replace("8780", str(port))],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "running slot B" in done.stdout
    assert "1.1 (1) into slot A, from 1.0 (1)" in done.stdout
