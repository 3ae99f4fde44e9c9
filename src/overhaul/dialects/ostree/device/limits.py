"""What our own back end leaves to the `ostree` program, told before anything is fetched where that can be known.

A boot loader with a configuration of its own, SELinux labels, and roots that are started through a composefs image.
What runs tells the device's kind. A commit that is the first of another kind is only known when it is here; it is
refused before anything is changed.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.bootswap import USE_OSTREE, check_boot_loader
from overhaul.dialects.ostree.device.checkout import file_object
from overhaul.dialects.ostree.device.composefs import CONFIGURATIONS, argument_demand, demands_image, has_image
from overhaul.dialects.ostree.device.keyfile import assignments
from overhaul.dialects.ostree.device.sysroot import Deployment, Sysroot, SysrootError, booted_deployment
from overhaul.dialects.ostree.objects import Commit
from overhaul.errors import DeviceError

_SELINUX = "usr/etc/selinux/config"


class UnusableTreeError(DeviceError):
    """A commit that is no operating system this updater can deploy."""

    def __init__(self, *, commit: str, reason: str) -> None:
        self.commit = commit
        self.reason = reason
        super().__init__(f"The commit {commit} cannot be deployed: {reason}. Nothing was changed.")


def check_device(sysroot: Sysroot, repository: BareRepository) -> None:
    """Refuse a device that our own back end cannot update.

    Raises:
        SysrootError: Its boot loader, its labels or its root need the `ostree` program.
    """
    check_boot_loader(sysroot, repository)
    deployments = sysroot.deployments()
    model = booted_deployment(deployments) or (deployments[0] if deployments else None)
    if model is None:
        return
    directory = sysroot.directory(model)
    reason = _reason(_texts(directory / name for name in CONFIGURATIONS), _texts([directory / _SELINUX]), model)
    if has_image(directory):
        reason = reason or "it is started through a composefs image"
    if reason:
        raise SysrootError(path=directory, reason=f"{reason}, which only ostree makes; {USE_OSTREE}.")


def check_tree(repository: BareRepository, content: Commit, commit: str, *, model: Deployment | None) -> None:
    """Refuse a commit that our own back end cannot deploy; `model` is what its kernel arguments are taken from.

    Raises:
        UnusableTreeError: It needs the `ostree` program.
    """

    reason = _reason(_texts_of(repository, content, CONFIGURATIONS), _texts_of(repository, content, (_SELINUX,)), model)
    if reason:
        raise UnusableTreeError(commit=commit, reason=f"{reason}, which only ostree makes; {USE_OSTREE}")


def needs_image(repository: BareRepository, content: Commit, *, model: Deployment | None) -> bool:
    """Tell whether a commit starts through a composefs image alone."""
    return _needs_image(_texts_of(repository, content, CONFIGURATIONS), model)


def _texts_of(repository: BareRepository, content: Commit, names: tuple[str, ...]) -> Iterator[str]:
    found = (file_object(repository, content, name) for name in names)
    return _texts(path for path in found if path is not None)


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    return (path.read_text(errors="replace") for path in paths if path.is_file())


def _reason(prepare_roots: Iterator[str], selinux: Iterator[str], model: Deployment | None) -> str:
    mode = next((assignments(text).get("SELINUX", "disabled") for text in selinux), "disabled")
    if mode != "disabled":
        return f"it uses SELinux labels ({mode})"
    return "it starts through a composefs image alone" if _needs_image(prepare_roots, model) else ""


def _needs_image(prepare_roots: Iterator[str], model: Deployment | None) -> bool:
    demanded = argument_demand(model.entry.arguments) if model is not None else None
    return any(map(demands_image, prepare_roots)) if demanded is None else demanded
