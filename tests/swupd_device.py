"""A device with a system of its own below a directory, driven through the client's command line."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest import mock

import pytest

from overhaul.dialects.swupd.device import cli
from overhaul.dialects.swupd.device.exits import Exit
from tests.swupd_site import Site, Thing


@dataclass
class Ran:
    """How a command ended and what it said."""

    code: Exit
    out: str
    errors: str

    @property
    def lines(self) -> list[str]:
        """The lines on standard output."""
        return self.out.splitlines()


@dataclass
class SwupdDevice:
    """A root, its client's state, and the address of a repository."""

    directory: Path
    url: str
    certificate: Path
    options: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path, site: Site, *, url: str | None = None) -> "SwupdDevice":
        """Return a device without a system, that trusts `site`."""
        directory.mkdir(parents=True, exist_ok=True)
        return cls(directory, url or site.url, site.keys.certificate, [f"--format={site.number}"])

    @property
    def root(self) -> Path:
        """The root of the system."""
        return self.directory / "root"

    @property
    def state(self) -> Path:
        """The client's data and cache."""
        return self.directory / "state"

    def run(self, command: str, *words: str, **changes: str) -> Ran:
        """Run `swupd COMMAND` on this device."""
        return run(
            command,
            f"--path={self.root}",
            f"--statedir={self.state}",
            f"--url={changes.get('url', self.url)}",
            f"--certpath={self.certificate}",
            "--max-retries=0",
            "--no-progress",
            *self.options,
            *words,
        )

    def install(self, *words: str) -> Ran:
        """Run `swupd os-install`; the device has a system afterwards."""
        ran = run(
            "os-install", str(self.root), f"--statedir={self.state}", f"--url={self.url}",
            f"--certpath={self.certificate}", "--no-scripts", "--ignore-time", "--max-retries=0", "--no-progress",
            *self.options, *words,
        )  # fmt: skip
        assert ran.code is Exit.OK, ran
        self.options = [option for option in self.options if not option.startswith("--format")]
        self.options += ["--no-scripts", "--ignore-time"] if "--no-scripts" not in self.options else []
        return ran

    def version(self) -> str:
        """Return VERSION_ID of the system."""
        text = (self.root / "usr/lib/os-release").read_text()
        return next(line.partition("=")[2] for line in text.splitlines() if line.startswith("VERSION_ID"))


def run(*words: str) -> Ran:
    """Run the client with `words`, with standard output and error caught."""
    out, errors = BytesIO(), BytesIO()
    with (
        mock.patch("sys.stdout", TextIOWrapper(out, "utf-8", "surrogateescape", write_through=True)) as stdout,
        mock.patch("sys.stderr", TextIOWrapper(errors, "utf-8", "surrogateescape", write_through=True)) as stderr,
    ):
        code = cli.run(list(words))
        stdout.flush()
        stderr.flush()
        texts = [stream.getvalue().decode("utf-8", "surrogateescape") for stream in (out, errors)]
    return Ran(code, *texts)


def assert_system(root: Path, tree: Mapping[str, Thing], *, allowed: frozenset[str] = frozenset()) -> None:
    """Check that `root` holds exactly `tree` and what is `allowed` besides: content, kinds, rights and owners."""
    expected = dict(tree)
    for path in list(expected):
        parent = path.rpartition("/")[0]
        while parent:
            expected.setdefault(parent, Thing("D", b"", 0o755))
            parent = parent.rpartition("/")[0]
    found = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            full = folder + b"/" + name
            path = full[len(os.fsencode(root)) :].decode("utf-8", "surrogateescape")
            found[path] = seen(full)
    extra = {path for path in found.keys() - expected.keys() if path not in allowed}
    assert not extra, f"unexpected: {sorted(extra)[:10]}"
    missing = expected.keys() - found.keys()
    assert not missing, f"missing: {sorted(missing)[:10]}"
    for path, thing in expected.items():
        assert found[path].hash == thing.hash, f"{path}: {found[path]} instead of {thing}"


def seen(path: bytes) -> Thing:
    """Return what lies at `path`."""
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Thing("D", b"", mode, status.st_uid, status.st_gid)
    if stat.S_ISLNK(status.st_mode):
        return Thing("L", os.readlink(path), 0o777, status.st_uid, status.st_gid)  # noqa: PTH115 - exact bytes
    assert stat.S_ISREG(status.st_mode), path
    return Thing("F", Path(os.fsdecode(path)).read_bytes(), mode, status.st_uid, status.st_gid)


def expect(ran: Ran, code: Exit) -> Ran:
    """Check how a command ended; what it said is shown when it ended otherwise."""
    if ran.code is not code:
        pytest.fail(f"exit {ran.code!r} instead of {code!r}\n{ran.out}\n{ran.errors}")
    return ran
