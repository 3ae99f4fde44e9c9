"""A device's system root: which deployments it has, in which order they boot, and which of them runs.

    ostree/repo                                         bare repository
    ostree/lock                                         held while deployments change
    ostree/deploy/OS/var                                state that all deployments of an OS share
    ostree/deploy/OS/deploy/COMMIT.SERIAL               the tree of a commit, with an `etc` of its own
    ostree/deploy/OS/deploy/COMMIT.SERIAL.origin        where it came from
    ostree/boot.B -> boot.B.S                           B and S are 0 or 1
    ostree/boot.B.S/OS/BOOTCSUM/K -> ../../../deploy/OS/deploy/COMMIT.SERIAL
    boot/loader -> loader.B                             replaced at once: this is what changes the next boot
    boot/loader.B/entries/*.conf
    boot/ostree/OS-BOOTCSUM/                            kernel, initial file system, device tree

The order of the deployments is nowhere but in the boot loader's entries. This module only reads; `deploying` writes.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.ostree.device.bootentry import BootEntry, boot_entry_files, read_boot_entries, read_boot_entry
from overhaul.dialects.ostree.device.composefs import backing_root
from overhaul.dialects.ostree.device.keyfile import KeyFile, read_key_file
from overhaul.dialects.ostree.device.recordlock import record_locked
from overhaul.errors import DeviceError, InputError

_NAME = re.compile(r"([0-9a-f]{64})\.(\d{1,9})\Z")
_OSNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")


class SysrootError(DeviceError):
    """A system root that is not one, or not in order."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be updated: {reason}")


class UnknownStaterootError(InputError):
    """The operating system to update is not clear."""

    def __init__(self, *, wanted: str, known: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.known = known
        names = ", ".join(known) or "none"
        said = f"There is no operating system {wanted!r} here" if wanted else "Which operating system is meant"
        super().__init__(f"{said}; name one of the deployed ones with --os: {names}.")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a deployment's updates come from."""

    remote: str
    branch: str
    #: A commit that the owner chose for good; there are no updates then.
    override_commit: str = ""
    #: A sentence of the vendor on what to do before updates work.
    unconfigured: str = ""
    is_pinned: bool = False

    @property
    def refspec(self) -> str:
        """As it stands in the file."""
        return f"{self.remote}:{self.branch}" if self.remote else self.branch


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One tree that can be booted."""

    osname: str
    commit: str
    serial: int
    #: Its entry of the boot loader; the arguments without the link are what updates inherit.
    entry: BootEntry
    boot_checksum: str
    #: None where its file is missing; such a deployment boots and is never updated from.
    origin: Origin | None
    is_booted: bool = False

    @property
    def name(self) -> str:
        """The directory's name."""
        return f"{self.commit}.{self.serial}"

    @property
    def is_pinned(self) -> bool:
        """Whether its owner keeps it."""
        return self.origin is not None and self.origin.is_pinned


@dataclass(frozen=True, kw_only=True)
class Running:
    """What this boot of the device runs, as the kernel tells it."""

    #: Device and inode of the deployment that `/` is or shows; None for a system root that does not run, as in a build.
    root: tuple[int, int] | None
    boot_id: str


def running_system(*, root: Path = Path("/")) -> Running:
    """Return what runs now; a system that OSTree did not start has no running deployment."""
    boot_id = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    booted = root / "run/ostree-booted"
    if not booted.exists():
        return Running(root=None, boot_id=boot_id)
    status = root.stat()
    return Running(root=backing_root(booted) or (status.st_dev, status.st_ino), boot_id=boot_id)


def system_root(path: Path) -> Path:
    """Return where the system root is; the root of the running system shows its own below /sysroot."""
    return Path("/sysroot") if path == Path("/") and (path / "sysroot/ostree").is_dir() else path


def boot_directory(path: Path, *, root: Path = Path("/")) -> Path:
    """Return where the boot loader's files of the system root `path` lie.

    A device that runs from `root` may have a partition of its own for them. That is mounted at `root`'s /boot, and
    below /sysroot only the empty directory is seen that it covers.
    """
    mounted = root / "boot"
    return mounted if path == root / "sysroot" and (mounted / "loader").is_symlink() else path / "boot"


class Sysroot:
    """Reads one system root."""

    def __init__(self, path: Path, *, running: Running, boot: Path | None = None) -> None:
        self.path = path
        self.running = running
        self.repository = path / "ostree/repo"
        self.boot = boot or path / "boot"
        if not self.repository.is_dir():
            raise SysrootError(path=path, reason="it has no ostree/repo. Give the right --sysroot, or deploy it first.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which deployments change; real OSTree takes the same one.

        Raises:
            RepositoryBusyError: Another program changes deployments now.
        """
        with record_locked(self.path / "ostree/lock", purpose="A change of the deployments", wait_s=0):
            yield

    def boot_version(self) -> int:
        """Return B; 0 where nothing was deployed yet."""
        link = self.boot / "loader"
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise SysrootError(
                path=link, reason="it is no symbolic link, so it cannot be replaced at once; /boot must not be FAT."
            ) from error
        if target not in {"loader.0", "loader.1"}:
            raise SysrootError(path=link, reason=f"it points to {target!r}; nothing but loader.0 and loader.1 may be.")
        return int(target[-1])

    def osnames(self) -> tuple[str, ...]:
        """Return the names of all operating systems that have state here."""
        try:
            names = sorted(path.name for path in (self.path / "ostree/deploy").iterdir() if path.is_dir())
        except FileNotFoundError:
            return ()
        return tuple(name for name in names if _OSNAME.match(name))

    def directory(self, deployment: Deployment) -> Path:
        """Return the directory of a deployment."""
        return self.deployments_directory(deployment.osname) / deployment.name

    def deployments_directory(self, osname: str) -> Path:
        """Return the directory that holds an operating system's deployments."""
        return self.path / "ostree/deploy" / osname / "deploy"

    def origin_file(self, deployment: Deployment) -> Path:
        """Return the file that names a deployment's origin."""
        return self.deployments_directory(deployment.osname) / f"{deployment.name}.origin"

    def deployments(self) -> tuple[Deployment, ...]:
        """Return what the boot loader can start, the default first.

        Raises:
            SysrootError: An entry leads to no deployment.
        """
        version = self.boot_version()
        entries = read_boot_entries(self.boot / f"loader.{version}/entries")
        return tuple(self._deployment(entry, version) for entry in entries)

    def startable(self) -> tuple[tuple[Deployment, ...], tuple[str, ...]]:
        """Return what can be started, the default first, and why other entries cannot; origins are not read.

        A device that cannot be reached had better start an older deployment than none.
        """
        version = self.boot_version()
        found, problems = [], []
        for path in boot_entry_files(self.boot / f"loader.{version}/entries"):
            try:
                found.append(self._deployment(read_boot_entry(path), version, has_origin=False))
            except (DeviceError, OSError) as error:
                problems.append(str(error))
        return tuple(sorted(found, key=lambda one: -one.entry.version)), tuple(problems)

    def _deployment(self, entry: BootEntry, version: int, *, has_origin: bool = True) -> Deployment:
        link = entry.boot_link
        if link is None or link.boot_version != version or not _OSNAME.match(link.osname):
            raise SysrootError(
                path=self.boot,
                reason=f"its entry {entry.file_name} does not start a deployment of boot.{version}.",
            )
        place = self.path / f"ostree/boot.{version}" / link.osname / link.boot_checksum / str(link.serial)
        try:
            target = Path(os.readlink(place))
        except OSError as error:
            raise SysrootError(path=place, reason=f"an entry leads to it: {error.strerror}.") from error
        named = _NAME.match(target.name)
        home = self.deployments_directory(link.osname)
        if named is None or not (home / target.name).is_dir():
            raise SysrootError(path=place, reason=f"it points to {target}, which is no deployment.")
        origin = home / f"{target.name}.origin"
        return Deployment(
            osname=link.osname,
            commit=named[1],
            serial=int(named[2]),
            entry=entry,
            boot_checksum=link.boot_checksum,
            origin=parse_origin(read_key_file(origin)) if has_origin and origin.exists() else None,
            is_booted=self._runs(home / target.name),
        )

    def _runs(self, directory: Path) -> bool:
        if self.running.root is None:
            return False
        status = directory.stat()
        return (status.st_dev, status.st_ino) == self.running.root


def parse_origin(content: KeyFile) -> Origin:
    """Return the origin that a key file describes; no refspec is an origin without updates."""
    refspec = content.get("origin", "refspec") or content.get("origin", "baserefspec") or ""
    remote, colon, branch = refspec.rpartition(":")
    return Origin(
        remote=remote if colon else "",
        branch=branch,
        override_commit=content.get("origin", "override-commit") or "",
        unconfigured=content.get("origin", "unconfigured-state") or "",
        is_pinned=content.get("libostree-transient", "pinned") == "true",
    )


def booted_deployment(deployments: tuple[Deployment, ...]) -> Deployment | None:
    """Return the one that runs, or None."""
    return next((deployment for deployment in deployments if deployment.is_booted), None)


def merge_deployment(deployments: tuple[Deployment, ...], osname: str) -> Deployment | None:
    """Return the one whose configuration and kernel arguments a new one inherits: what runs, else the default."""
    own = [deployment for deployment in deployments if deployment.osname == osname]
    return next((deployment for deployment in own if deployment.is_booted), own[0] if own else None)


def chosen_osname(sysroot: Sysroot, wanted: str) -> str:
    """Return the operating system to update: the wanted one, the one that runs, or the only one.

    Raises:
        UnknownStaterootError: It is not there, or several are and none was named.
    """
    known = sysroot.osnames()
    if wanted:
        if wanted in known:
            return wanted
    else:
        booted = booted_deployment(sysroot.deployments())
        if booted is not None:
            return booted.osname
        if len(known) == 1:
            return known[0]
    raise UnknownStaterootError(wanted=wanted, known=known)
