"""An OSTree world in small: a publisher that is the real `ostree`, and a device's system root beside it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from overhaul.dialects.ostree.device.immutable import set_immutable
from overhaul.dialects.ostree.device.settings import UpdateSettings
from overhaul.dialects.ostree.device.sysroot import Deployment, Running, Sysroot
from overhaul.dialects.ostree.device.updating import Updater
from overhaul.dialects.ostree.device.wiring import Choices, open_updater
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.install.reboot import NeverRestarts, Restarter
from tests.tools import need

BRANCH = "example/x86_64/standard"
OSNAME = "example"
REMOTE = "updates"
START = 1_700_000_000
#: Enough for the scenes of several workers.
_SPACE_BYTES = 512 << 20


def ostree(*arguments: str | Path, check: bool = True) -> str:
    """Run the real `ostree` and return what it printed, errors included."""
    done = subprocess.run(
        [need("ostree"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if check and done.returncode:
        raise AssertionError(f"ostree {arguments} failed: {done.stdout}")
    return done.stdout


def write_tree(root: Path, version: str, files: Mapping[str, str | None] = {}) -> None:
    """Write a small bootable tree; `files` are added, or removed where the content is None; '-> x' is a link."""
    content: dict[str, str | None] = {
        "usr/lib/os-release": f'PRETTY_NAME="Example OS"\nID=example\nVERSION_ID={version}\n',
        "usr/lib/modules/6.1/vmlinuz": "kernel 6.1\n",
        "usr/lib/modules/6.1/initramfs.img": "initial file system 6.1\n",
        "usr/etc/motd": "welcome\n",
        "usr/etc/ssh/sshd_config": "PermitRootLogin no\n",
        "usr/bin/tool": f"tool of {version}\n" * 50,
        "usr/bin/same": "the same in all versions\n",
        "usr/bin/shortcut": "-> tool",
        "ostree": "-> sysroot/ostree",
        **files,
    }
    shutil.rmtree(root, ignore_errors=True)
    for name in ("boot", "var", "sysroot", "proc", "usr/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        if text is None:
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    (root / "usr/bin/tool").chmod(0o755)


@dataclass
class Publisher:
    """An archive repository that the real `ostree` writes."""

    directory: Path
    gpg_home: Path | None = None
    gpg_key: str = ""
    releases: int = field(default=0)

    def __post_init__(self) -> None:
        self.repository = self.directory / "repository"
        if not self.repository.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            ostree("init", f"--repo={self.repository}", "--mode=archive")

    @property
    def signing(self) -> list[str]:
        return [] if self.gpg_home is None else [f"--gpg-homedir={self.gpg_home}", f"--gpg-sign={self.gpg_key}"]

    def publish(self, version: str, files: Mapping[str, str | None] = {}, *, timestamp: int | None = None) -> str:
        """Commit a tree, renew the summary and return the commit."""
        self.releases += 1
        tree = self.directory / "tree"
        write_tree(tree, version, files)
        moment = timestamp if timestamp is not None else START + self.releases
        commit = ostree(
            "commit", f"--repo={self.repository}", f"--branch={BRANCH}", f"--timestamp=@{moment}",
            f"--add-metadata-string=version={version}", "--no-xattrs", *self.signing, tree,
        ).strip().splitlines()[-1]  # fmt: skip
        self.renew_summary()
        return commit

    def make_delta(self, source: str, target: str) -> Path:
        """Make a static delta and return its directory."""
        ostree("static-delta", f"--repo={self.repository}", "generate", f"--from={source}", f"--to={target}")
        self.renew_summary()
        return self.repository / delta_directory(bytes.fromhex(source), bytes.fromhex(target))

    def renew_summary(self) -> None:
        """Write the summary, signed when commits are."""
        ostree("summary", f"--repo={self.repository}", "-u", *self.signing)


@contextmanager
def quiet_directory() -> Iterator[Path]:
    """Yield a directory that is removed afterwards, immutable flags or not.

    Updates sync whole file systems, and on a busy disk that waits for everybody's writing; memory has nothing to wait
    for. Without enough shared memory, or where hooks in it cannot be run, it is an ordinary temporary directory.
    """
    memory = Path("/dev/shm")
    fits = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _SPACE_BYTES
    fits = fits and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    with tempfile.TemporaryDirectory(dir=memory if fits else None, prefix="ostree-scene-") as name:
        try:
            yield Path(name)
        finally:
            _free(Path(name))


def _free(directory: Path) -> None:
    for sysroot in directory.rglob("sysroot"):
        for path in (*sysroot.glob("ostree/deploy/*/deploy/*"), sysroot / "ostree/repo/tmp/overhaul-checkout"):
            if path.is_dir() and not path.is_symlink():
                set_immutable(path, immutable=False)


@dataclass
class OstreeDevice:
    """A system root, and the updater that works on it."""

    directory: Path
    url: str = ""
    #: The deployment that runs, by `COMMIT.SERIAL`; empty: the system root does not run.
    booted: str = ""
    boot_id: str = "first"
    settings: UpdateSettings = field(default_factory=UpdateSettings)
    restarter: Restarter = field(default_factory=NeverRestarts)
    now: int = START + 1000

    @property
    def sysroot(self) -> Path:
        return self.directory / "sysroot"

    @property
    def repository(self) -> Path:
        return self.sysroot / "ostree/repo"

    @classmethod
    def make(cls, directory: Path, url: str, *, keys: Path | None = None) -> "OstreeDevice":
        """Make a system root as the real `ostree` does, with the remote but nothing deployed."""
        device = cls(directory=directory, url=url)
        device.sysroot.mkdir(parents=True)
        ostree("admin", "init-fs", device.sysroot)
        ostree("admin", "os-init", f"--sysroot={device.sysroot}", OSNAME)
        verify = ["--no-gpg-verify"] if keys is None else [f"--gpg-import={keys}"]
        ostree("remote", f"--repo={device.repository}", "add", *verify, REMOTE, url)
        return device

    def install(self, commit: str = "") -> Deployment:
        """Pull and deploy with the real `ostree`, and let that run."""
        ostree("pull", f"--repo={self.repository}", REMOTE, f"{BRANCH}@{commit}" if commit else BRANCH)
        ostree(
            "admin", "deploy", f"--sysroot={self.sysroot}", f"--os={OSNAME}", "--karg=root=LABEL=root",
            "--karg=quiet", f"{REMOTE}:{BRANCH}",
        )  # fmt: skip
        return self.boot()

    def boot(self) -> Deployment:
        """Start the default deployment."""
        (default, *_others) = self.open().deployments()
        self.booted = default.name
        self.boot_id += "'"
        return self.open().deployments()[0]

    def open(self) -> Sysroot:
        """Return the system root as what runs sees it."""
        root = None
        if self.booted:
            status = (self.sysroot / "ostree/deploy" / OSNAME / "deploy" / self.booted).stat()
            root = (status.st_dev, status.st_ino)
        return Sysroot(self.sysroot, running=Running(root=root, boot_id=self.boot_id))

    def updater(self, **changes: object) -> Updater:
        """Return the updater; `changes` replace its parts."""
        settings = self.updater_settings()
        choices = Choices(sysroot=self.sysroot, root=self.directory / "root")
        made = open_updater(
            settings, choices, running=self.open().running, clock=lambda: float(self.now), sleep=lambda _seconds: None
        )
        return replace(
            made,
            restarter=self.restarter,
            block_shutdown=nullcontext,
            **changes,  # type: ignore[arg-type]
        )

    def updater_settings(self) -> UpdateSettings:
        """Return the device's settings with its own places in them."""
        network = msgspec.structs.replace(self.settings.network, allow_http=True, connections=2)
        return msgspec.structs.replace(
            self.settings,
            state_directory=str(self.directory / "state"),
            network=network,
            hooks=msgspec.structs.replace(self.settings.hooks, directory=str(self.directory / "hooks")),
        )

    def deployed(self) -> list[str]:
        """Return the commits in the order in which they boot."""
        return [one.commit for one in self.open().deployments()]

    def etc(self, place: int = 0) -> Path:
        """Return /etc of the deployment at `place`."""
        sysroot = self.open()
        return sysroot.directory(sysroot.deployments()[place]) / "etc"

    def copy(self, directory: Path) -> "OstreeDevice":
        """Return a device like this one; hard links stay links."""
        directory.mkdir(parents=True)
        subprocess.run([need("cp"), "-a", f"{self.directory}/.", str(directory)], check=True)
        return OstreeDevice(**{**vars(self), "directory": directory})

    def write_hook(self, stage: str, name: str, text: str) -> Path:
        """Write an executable hook."""
        path = self.directory / "hooks" / f"{stage}.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def fsck(self) -> None:
        """Have the real `ostree` check the repository, and read the deployments."""
        ostree("fsck", f"--repo={self.repository}")
        ostree("admin", "status", f"--sysroot={self.sysroot}")


class NotedRestarts:
    """Notes restarts instead of making them; a stand-in for logind."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.asked: list[bool] = []
        self.fails = fails

    def restart(self, *, urgent: bool = False) -> bool:
        """Note one."""
        if self.fails is not None:
            raise self.fails
        self.asked.append(urgent)
        return True
