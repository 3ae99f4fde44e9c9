"""The seam between deciding about updates and carrying them out: our own way, and the `ostree` program.

Both work on the same system root and leave what the other understands; `tests/behaviour/test_ostree_device_backends.py`
holds both to the same promises. What may be taken is decided by our own code either way (signatures, branch, age,
refused commits), before a byte of a tree is fetched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.bootswap import clean_up
from overhaul.dialects.ostree.device.deploying import DeployChoices, deploy, make_default, preview
from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.limits import check_device
from overhaul.dialects.ostree.device.prune import prune
from overhaul.dialects.ostree.device.pull import Pulled, PullSettings, Surroundings, pull
from overhaul.dialects.ostree.device.remote import load_remote
from overhaul.dialects.ostree.device.seen import SeenSummary
from overhaul.dialects.ostree.device.sysroot import Deployment, Origin, Sysroot

#: Tells why a commit is not wanted, or None.
Refusal = Callable[[str], str | None]


class Backend(Protocol):
    """Whoever pulls and deploys."""

    name: str

    def deployments(self) -> tuple[Deployment, ...]:
        """Return what the boot loader can start, the default first."""

    def pull(
        self, origin: Origin, *, known_timestamp: int | None, refused: Refusal, seen: SeenSummary | None = None
    ) -> Pulled:
        """Bring the origin's commit into the repository, verified and whole; `seen` is what the last pull returned."""

    def preview(self, *, osname: str, commit: str) -> MergePlan:
        """Return what deploying a commit would do to /etc; nothing is written."""

    def deploy(self, *, osname: str, commit: str, origin: Origin) -> Deployment:
        """Let a commit boot next, beside what runs."""

    def make_default(self, deployment: Deployment) -> None:
        """Let a deployment that is there boot next."""

    def clean_up(self) -> None:
        """Remove what no deployment needs."""


class OwnBackend:
    """Carries everything out itself; needs no other program."""

    name = "own"

    def __init__(
        self,
        sysroot: Sysroot,
        repository: BareRepository,
        *,
        surroundings: Callable[[str], Surroundings],
        pull_settings: PullSettings,
        choices: DeployChoices,
        root: Path = Path("/"),
    ) -> None:
        self._sysroot = sysroot
        self._repository = repository
        self._surroundings = surroundings
        self._pull_settings = pull_settings
        self._choices = choices
        self._root = root

    def deployments(self) -> tuple[Deployment, ...]:
        """Return what the boot loader can start, the default first."""
        return self._sysroot.deployments()

    def pull(
        self, origin: Origin, *, known_timestamp: int | None, refused: Refusal, seen: SeenSummary | None = None
    ) -> Pulled:
        """Bring the origin's commit into the repository, verified and whole; `seen` is what the last pull returned."""
        # A device that we cannot deploy to had better not fetch anything first.
        check_device(self._sysroot, self._repository)
        remote = load_remote(self._repository, origin.remote, root=self._root)
        return pull(
            self._repository,
            remote,
            origin.branch,
            surroundings=self._surroundings(origin.remote),
            settings=self._pull_settings,
            known_timestamp=known_timestamp,
            bases=whole_commits(self._repository, self.deployments(), origin),
            refused=refused,
            seen=seen,
        )

    def preview(self, *, osname: str, commit: str) -> MergePlan:
        """Return what deploying a commit would do to /etc; nothing is written."""
        return preview(self._sysroot, self._repository, osname=osname, commit=commit)

    def deploy(self, *, osname: str, commit: str, origin: Origin) -> Deployment:
        """Let a commit boot next, beside what runs."""
        with self._sysroot.locked():
            return deploy(
                self._sysroot,
                self._repository,
                osname=osname,
                commit=commit,
                origin=origin,
                choices=self._choices,
            )

    def make_default(self, deployment: Deployment) -> None:
        """Let a deployment that is there boot next."""
        with self._sysroot.locked():
            make_default(self._sysroot, self._repository, deployment)

    def clean_up(self) -> None:
        """Remove what no deployment needs."""
        with self._sysroot.locked():
            clean_up(self._sysroot, self._repository)
            prune(self._repository)


def whole_commits(repository: BareRepository, deployments: tuple[Deployment, ...], origin: Origin) -> list[str]:
    """Return the commits a delta may begin at, the most likely first: what was pulled last, then what is deployed."""
    pulled = repository.resolve(origin.remote, origin.branch)
    found = [*([pulled] if pulled else []), *(one.commit for one in deployments)]
    return [commit for commit in dict.fromkeys(found) if not repository.is_partial(commit)]
