"""The container's script and the examples, run as they are handed to users."""

import os
import subprocess
import sys
from pathlib import Path

from tests.swupd_keys import self_signed
from tests.swupd_trees import header, lines, write_tree

from overhaul.dialects.swupd.bundles import load_bundles

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "deploy/docker/swupd/process_rootfs.sh"


def run(storage: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    everything = {**os.environ, "PATH": programs, "OVERHAUL_SWUPD_STORAGE": str(storage), **environment}
    return subprocess.run(["sh", SCRIPT, *arguments], env=everything, capture_output=True, text=True, check=False)


def test_the_script_of_the_container_makes_versions_of_tars(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    (storage / "image").mkdir(parents=True)
    root = write_tree(tmp_path / "root", {"/usr/bin/tool": b"tool"})
    archive = storage / "image/rootfs.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    self_signed(tmp_path)
    refused = run(storage, "rootfs.tar", "10", KEYS=str(tmp_path / "nowhere"))
    assert refused.returncode == 7
    assert "nowhere" in refused.stderr
    done = run(storage, "rootfs.tar", "10", KEYS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert lines(storage / "www", 10)["/usr/bin/tool"].flags == "F..."
    assert (storage / "www/10/Manifest.MoM.sig").is_file()
    (root / "usr/bin/more").touch()
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    assert run(storage, "rootfs.tar", "20", UNSIGNED="1").returncode == 0
    assert header(storage / "www", 20)["previous"] == ["10"]
    assert run(storage).returncode == 2


def test_the_example_bundles_can_be_built() -> None:
    toml = {one.name: one for one in load_bundles(TOP / "examples/swupd/bundles.toml")}
    assert toml["developer"].includes == ("manuals", "network-tools", "os-core", "python", "shell-tools")
    groups = {one.name for one in load_bundles(TOP / "examples/swupd/groups.ini")}
    assert groups == {"editors", "old-editors", "os-core", "python"}
