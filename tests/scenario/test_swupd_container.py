"""The container's script and the examples, run as they are handed to users."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.swupd_keys import self_signed
from tests.swupd_trees import header, lines, write_tree
from tests.tools import need

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


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, continued lines joined."""
    text = (TOP / "deploy/docker/swupd/Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined) if word]


def arguments_of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def test_the_steps_of_the_image_are_what_the_sources_have() -> None:
    """No container is built here: each step is held to the sources and to the programs it names instead."""
    assert {"http_proxy", "https_proxy", "no_proxy"} <= set(arguments_of("ARG"))
    for copied in arguments_of("COPY"):
        assert (TOP / copied.split()[0]).exists()
    for step in arguments_of("RUN"):
        subprocess.run(["sh", "-n", "-c", step], check=True)
    install = next(step for step in arguments_of("RUN") if "apt-get install" in step)
    named = install.partition("--no-install-recommends")[2].partition("&&")[0].split()
    # What the builder runs, by the packages that have it.
    programs = {
        "debugfs": "e2fsprogs",
        "mount": "mount",
        "tar": "tar",
        "unsquashfs": "squashfs-tools",
        "xz": "xz-utils",
    }
    assert set(programs.values()) <= set(named)
    for program, package in programs.items():
        need(program)
        files = subprocess.run(["dpkg", "--listfiles", package], capture_output=True, text=True, check=True)
        assert program in {Path(line).name for line in files.stdout.splitlines() if "bin/" in line}
    (pip,) = (step for step in arguments_of("RUN") if "pip install" in step)
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"overhaul\[([a-z,-]+)\]", pip)) == {"publish"} & extras.keys()
    assert set(json.loads(arguments_of("VOLUME")[0])) == {"/storage/image", "/storage/www"}


def test_the_first_command_of_the_image_runs() -> None:
    (command,) = (json.loads(rest) for rest in arguments_of("CMD"))
    # The source of the image keeps its programs elsewhere than the tests do.
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(command, env={**os.environ, "PATH": programs}, capture_output=True, text=True, check=True)
    assert "extract-rootfs" in shown.stdout


def test_the_example_bundles_can_be_built() -> None:
    toml = {one.name: one for one in load_bundles(TOP / "examples/swupd/bundles.toml")}
    assert toml["developer"].includes == ("manuals", "network-tools", "os-core", "python", "shell-tools")
    groups = {one.name for one in load_bundles(TOP / "examples/swupd/groups.ini")}
    assert groups == {"editors", "old-editors", "os-core", "python"}
