"""The one place where the updater's parts are put together, from its configuration and the command line."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from overhaul.dialects.ostree.device.backend import Backend, OwnBackend
from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.deploying import DeployChoices
from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.inhibitor import shutdown_blocked
from overhaul.dialects.ostree.device.limits import check_device
from overhaul.dialects.ostree.device.mounts import SystemMounts
from overhaul.dialects.ostree.device.ostree_backend import OstreeBackend
from overhaul.dialects.ostree.device.pull import PullSettings, Surroundings
from overhaul.dialects.ostree.device.remote import Remote, load_remote
from overhaul.dialects.ostree.device.settings import UpdateSettings
from overhaul.dialects.ostree.device.staging import free_space_bytes
from overhaul.dialects.ostree.device.state import StateFile
from overhaul.dialects.ostree.device.sysroot import (
    Running,
    Sysroot,
    SysrootError,
    boot_directory,
    merge_deployment,
    running_system,
    system_root,
)
from overhaul.dialects.ostree.device.updating import Updater
from overhaul.dialects.ostree.device.writable import make_writable
from overhaul.install.probe import run_probe
from overhaul.install.reboot import LogindRestarter, NeverRestarts, Restarter
from overhaul.progress import Progress, Silence
from overhaul.transfer.counting import CountingFetcher
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.resuming import ResumingFetcher
from overhaul.transfer.settings import FetchSettings


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says."""

    sysroot: Path = Path("/")
    osname: str = ""
    post_apply_hook: str | None = None
    allows_downgrade: bool = False
    reboots: bool = True
    progress: Progress = field(default_factory=Silence)
    show_merge: Callable[[MergePlan], None] = lambda _plan: None
    #: Below it the system's remotes and keys are looked up, and what runs.
    root: Path = Path("/")


class Network:
    """Opens fetchers for one remote, and counts what all of them bring."""

    def __init__(self, settings: UpdateSettings, *, sleep: Callable[[float], None], threads: int) -> None:
        self._settings = settings
        self._sleep = sleep
        self._threads = threads
        self._opened: list[CountingFetcher] = []

    def opener(self, remote: Remote) -> Callable[[], Fetcher]:
        """Return what opens a fetcher, one for each thread."""
        network = self._settings.network
        cap = network.max_bytes_per_s
        fetching = FetchSettings(
            allow_http=network.allow_http,
            proxy=remote.proxy,
            ca_file=remote.ca_file,
            # The cap is for all requests together; each thread keeps to its share.
            max_bytes_per_s=max(1, cap // self._threads) if cap else None,
            user_agent="refkit-ostree-update",
        )

        def opened() -> Fetcher:
            counting = CountingFetcher(open_fetcher(fetching))
            self._opened.append(counting)
            return ResumingFetcher(counting, wait=self._sleep, attempts=4, longest_wait_s=10.0)

        return opened

    @property
    def bytes_received(self) -> int:
        """Bytes of all response bodies so far."""
        return sum(fetcher.bytes_received for fetcher in self._opened)

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        return sum(fetcher.requests for fetcher in self._opened)


def open_sysroot(choices: Choices, *, running: Running | None = None) -> Sysroot:
    """Return the system root to update."""
    path = system_root(choices.sysroot)
    boot = boot_directory(path, root=choices.root)
    return Sysroot(path, running=running or running_system(root=choices.root), boot=boot)


def open_updater(
    settings: UpdateSettings,
    choices: Choices,
    *,
    running: Running | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Updater:
    """Return the updater of this device."""
    sysroot = open_sysroot(choices, running=running)
    if sysroot.running.root is not None:
        make_writable((sysroot.repository, sysroot.boot), mounts=SystemMounts())
    repository = BareRepository(sysroot.repository)
    state_directory = Path(settings.state_directory)
    return Updater(
        settings=settings,
        sysroot=sysroot,
        repository=repository,
        backend=open_backend(settings, choices, sysroot, repository, sleep=sleep),
        states=StateFile(state_directory),
        lock_path=state_directory / "lock",
        osname=choices.osname,
        restarter=_restarter(settings, choices, sleep=sleep),
        block_shutdown=_shutdown_lock(sysroot),
        run=run_probe,
        clock=clock,
        monotonic=time.monotonic,
        sleep=sleep,
        post_apply_hook=choices.post_apply_hook,
        allows_downgrade=choices.allows_downgrade,
        show_merge=choices.show_merge,
    )


def open_backend(
    settings: UpdateSettings,
    choices: Choices,
    sysroot: Sysroot,
    repository: BareRepository,
    *,
    sleep: Callable[[float], None],
) -> Backend:
    """Return the back end that the configuration asks for, or that this device needs."""
    network = Network(settings, sleep=sleep, threads=settings.network.connections)
    deploy = DeployChoices(
        boot_attempts=settings.deploy.boot_attempts or None,
        stops_at_conflicts=settings.deploy.conflicts == "stop",
    )
    if _backend_name(settings, sysroot, repository) == "ostree":
        merge = merge_deployment(sysroot.deployments(), choices.osname) if choices.osname else None
        deployments = sysroot.deployments()
        merge = merge or (deployments[0] if deployments else None)
        remote_name = merge.origin.remote if merge is not None and merge.origin is not None else ""
        remote = load_remote(repository, remote_name, root=choices.root)
        return OstreeBackend(
            sysroot,
            repository,
            fetcher=network.opener(remote)(),
            choices=deploy,
            uses_deltas=settings.network.uses_deltas,
            root=choices.root,
        )

    def surroundings(name: str) -> Surroundings:
        return Surroundings(
            open_fetcher=network.opener(load_remote(repository, name, root=choices.root)),
            boot_id=sysroot.running.boot_id,
            free_space=free_space_bytes,
            progress=choices.progress,
        )

    return OwnBackend(
        sysroot,
        repository,
        surroundings=surroundings,
        pull_settings=PullSettings(
            connections=settings.network.connections,
            uses_deltas=settings.network.uses_deltas,
            reserve_bytes=settings.deploy.reserve_bytes,
        ),
        choices=deploy,
        root=choices.root,
    )


def _backend_name(settings: UpdateSettings, sysroot: Sysroot, repository: BareRepository) -> str:
    if settings.deploy.backend != "automatic":
        return settings.deploy.backend
    try:
        check_device(sysroot, repository)
    except SysrootError:
        return "ostree" if shutil.which("ostree") else "own"
    return "own"


def _restarter(settings: UpdateSettings, choices: Choices, *, sleep: Callable[[float], None]) -> Restarter:
    if settings.reboot.policy == "never" or not choices.reboots:
        return NeverRestarts()
    return LogindRestarter(
        window=settings.window,
        wait_s=settings.reboot.inhibitor_wait_s,
        local_time=lambda: datetime.now(UTC).astimezone(),
        sleep=sleep,
    )


def _shutdown_lock(sysroot: Sysroot) -> Callable[[], AbstractContextManager[None]]:
    # A build's system root is not what a shutdown would hurt, and a system without systemd has no logind to ask.
    if sysroot.running.root is None or not Path("/run/systemd/system").is_dir():
        return nullcontext
    return lambda: shutdown_blocked(why="An operating-system update is being deployed")
