"""swupd's client on 20 000 files of 150 MB: install, diagnose, and an update of 1 200 changes and 200 removals.

    python -m benchmarks.swupd_client [SCRATCH] [--rounds N]

The original client is in no Debian release of this age, so its figures, taken once on a machine of the same class,
stand in the table as they are: they are no ratio of one run.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Measured, in_turns, mebibytes, median, run, table
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.signing import load_signer
from overhaul.dialects.swupd.storage import Storage
from overhaul.progress import Silence

_FILES = 20_000
_BYTES = 150_000_000
_BUILT_AT = 1_700_000_000
#: CPU and wall seconds of the original client for the same work, where known.
_PEER: dict[str, tuple[str, str]] = {
    "start": ("", ""),
    "diagnose": ("0.54", ""),
    "install": ("", "13.4"),
    "update": ("", "4.7"),
}


def make_repository(scratch: Path) -> tuple[Storage, Path]:
    """Build two versions of a system; return their staging directory and the certificate they are signed with."""
    key, certificate = scratch / "key.pem", scratch / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "30",
         "-subj", "/CN=benchmark"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    storage = Storage(scratch / "storage")
    chance = random.Random(1)
    old, new = storage.images / "10" / "os-core", storage.images / "20" / "os-core"
    _make_tree(old, chance)
    shutil.copytree(old, new, symlinks=True)
    _change_tree(new, chance)
    options = BuildOptions(
        signer=load_signer(key=key, certificate=certificate), workers=len(os.sched_getaffinity(0)),
        content_url=f"file://{storage.web}", version_url=f"file://{storage.web}",
    )  # fmt: skip
    for version in (10, 20):
        storage.process(version, options=options, timestamp=_BUILT_AT, progress=Silence())
    return storage, certificate


def compare(scratch: Path, *, rounds: int) -> dict[str, Measured]:
    """Run each command `rounds` times and return the medians."""
    storage, certificate = make_repository(scratch)
    root, state = scratch / "root", scratch / "state"

    def swupd(command: str, *words: str | Path) -> Measured:
        common = [f"--statedir={state}", f"--url=file://{storage.web}", f"--certpath={certificate}", "--format=4",
                  "--ignore-time", "--no-scripts", "--no-progress"]  # fmt: skip
        program = "from overhaul.dialects.swupd.device.cli import main; main()"
        return run([sys.executable, "-c", program, command, *words, *common])

    def install() -> Measured:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)
        return swupd("os-install", root, "--version=10")

    def update() -> Measured:
        copy = scratch / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy, symlinks=True)
        return swupd("update", f"--path={copy}")

    def start() -> Measured:
        return run([sys.executable, "-c", "from overhaul.dialects.swupd.device.cli import main; main()", "hashdump",
                    certificate])  # fmt: skip

    install()
    runs: dict[str, Callable[[], Measured]] = {
        "start": start,
        "install": install,
        "diagnose": lambda: swupd("diagnose", f"--path={root}"),
        "update": update,
    }
    return {name: median(found) for name, found in in_turns(runs, rounds=rounds).items()}


def report(found: dict[str, Measured]) -> str:
    """Return the figures as a table beside the original's."""
    rows = [
        [name, f"{one.cpu_s:.2f}", f"{one.wall_s:.2f}", mebibytes(one.memory_bytes), *_PEER[name]]
        for name, one in found.items()
    ]
    return table(["swupd client", "CPU s", "wall s", "peak MiB", "original's CPU s", "original's wall s"], rows)


def _make_tree(root: Path, chance: random.Random) -> None:
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 10))) for _ in range(4000)]
    sizes = [chance.lognormvariate(7.6, 1.6) for _ in range(_FILES)]
    scale = _BYTES / sum(sizes)
    for number, size in enumerate(sizes):
        path = root / f"usr/share/d{number % 500}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = int(size * scale) + 1
        text = b" ".join(chance.choices(words, k=wanted // 7 + 1))[:wanted]
        path.write_bytes(chance.randbytes(wanted) if chance.random() < 0.3 else text)
    (root / "usr/lib").mkdir()
    (root / "usr/lib/os-release").write_text("VERSION_ID=10\n")


def _change_tree(root: Path, chance: random.Random) -> None:
    paths = sorted((root / "usr/share").glob("d*/f*"))
    chance.shuffle(paths)
    for path in paths[:1000]:
        data = bytearray(path.read_bytes())
        for _ in range(3):
            place = chance.randrange(len(data))
            data[place : place + 20] = chance.randbytes(20)
        path.write_bytes(data)
    for path in paths[1000:1200]:
        path.unlink()
    for number in range(200):
        (root / f"usr/share/d{number}/new").write_bytes(chance.randbytes(5000))
    (root / "usr/lib/os-release").write_text("VERSION_ID=20\n")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swupd_client", description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path, nargs="?", help="directory for about 2 GB; a temporary one without it")
    parser.add_argument("--rounds", type=int, default=3, help="how often each command runs (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swupd-", dir=arguments.scratch) as scratch:
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{len(os.sched_getaffinity(0))} CPUs, load before {load}")
        print(report(compare(Path(scratch), rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
