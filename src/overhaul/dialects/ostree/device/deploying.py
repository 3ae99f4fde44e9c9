"""Our own way to deploy: side by side with what runs, with the owner's /etc, and the boot loader told last.

A new tree is laid out in the repository's `tmp`, gets its /etc, and takes its name as a whole; no entry of the boot
loader leads to it until `bootswap` has written them all. Killed before that, the next run begins it again and
`clean_up` removes what was left.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.bootentry import BootEntry
from overhaul.dialects.ostree.device.bootswap import Listed, check_boot_loader, clean_up, write_list
from overhaul.dialects.ostree.device.checkout import check_out, file_object, subtree
from overhaul.dialects.ostree.device.etcmerge import (
    ConfigurationConflictError,
    MergePlan,
    apply_merge,
    copy_tree,
    plan_merge,
)
from overhaul.dialects.ostree.device.immutable import set_immutable
from overhaul.dialects.ostree.device.kernel import find_kernel
from overhaul.dialects.ostree.device.keyfile import KeyFile, assignments, write_key_file
from overhaul.dialects.ostree.device.limits import UnusableTreeError, check_tree
from overhaul.dialects.ostree.device.staging import NoSpaceError, free_space_bytes
from overhaul.dialects.ostree.device.sysroot import (
    Deployment,
    Origin,
    Sysroot,
    booted_deployment,
    merge_deployment,
)
from overhaul.dialects.ostree.objects import Commit
from overhaul.host.files import sync_directory, sync_file_system

_OS_RELEASE = ("usr/lib/os-release", "etc/os-release", "usr/etc/os-release")
#: What directories and the copy of /etc may take, for each directory of the tree.
_CHECKOUT = "overhaul-checkout"
_RESERVE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class DeployChoices:
    """What the device's owner may choose about new deployments."""

    #: Attempts the boot loader makes with a new deployment before it falls back; None: it does not count.
    boot_attempts: int | None = None
    #: Refuse to deploy when owner and new defaults changed the same path, instead of keeping the owner's.
    stops_at_conflicts: bool = False


def preview(sysroot: Sysroot, repository: BareRepository, *, osname: str, commit: str) -> MergePlan:
    """Return what deploying `commit` would do to /etc, without writing anything."""
    merge = merge_deployment(sysroot.deployments(), osname)
    if merge is None:
        return MergePlan()
    new = _default_etc(repository, repository.commit(commit))
    old = _default_etc(repository, repository.commit(merge.commit))
    directory = sysroot.directory(merge)
    return plan_merge(
        repository,
        merge_etc=directory / "etc",
        merge_usr_etc=directory / "usr/etc",
        old_tree=old,
        new_tree=new,
    )


def deploy(
    sysroot: Sysroot,
    repository: BareRepository,
    *,
    osname: str,
    commit: str,
    origin: Origin,
    choices: DeployChoices,
) -> Deployment:
    """Deploy `commit` so that it boots next, and return it; what runs stays the one to fall back to.

    Raises:
        UnusableTreeError, NoKernelError: The commit is no bootable system.
        ConfigurationConflictError: /etc cannot be merged, or may not be.
        NoSpaceError: There is no room, even without the deployments that may go.
    """
    check_boot_loader(sysroot, repository)
    content = repository.commit(commit)
    title = _title(repository, content, commit)
    plan = preview(sysroot, repository, osname=osname, commit=commit)
    unwanted = [found for found in plan.conflicts if found.blocks or choices.stops_at_conflicts]
    if unwanted:
        raise ConfigurationConflictError(conflicts=unwanted)
    deployments = sysroot.deployments()
    merge = merge_deployment(deployments, osname)
    check_tree(repository, content, commit, model=merge)
    clean_up(sysroot, repository)
    tree = _lay_out(sysroot, repository, content, commit=commit, merge=merge, plan=plan)
    deployment = _take_name(sysroot, tree, osname=osname, commit=commit, origin=origin, merge=merge)
    kept = _kept(deployments, osname=osname, merge=merge)
    new = Listed(
        deployment=deployment,
        title=title,
        arguments=merge.entry.own_arguments if merge is not None else (),
        attempts=choices.boot_attempts,
    )
    listed = [new, *(as_listed(one) for one in kept)]
    _write_or_make_room(sysroot, repository, listed, deployments=deployments)
    return next(one for one in sysroot.deployments() if one.name == deployment.name and one.osname == osname)


def make_default(sysroot: Sysroot, repository: BareRepository, deployment: Deployment) -> None:
    """Let `deployment` boot next; the others keep their order behind it."""
    check_boot_loader(sysroot, repository)
    others = [one for one in sysroot.deployments() if (one.osname, one.name) != (deployment.osname, deployment.name)]
    # It is known to boot: nothing counts its attempts.
    write_list(sysroot, repository, [as_listed(deployment), *map(as_listed, others)])
    clean_up(sysroot, repository)


def as_listed(deployment: Deployment) -> Listed:
    """Return a deployment with its entry as it is; the boot loader no longer counts its attempts."""
    title = deployment.entry.title.rpartition(" (ostree:")[0] or deployment.entry.title
    return Listed(deployment=deployment, title=title, arguments=deployment.entry.own_arguments)


def _default_etc(repository: BareRepository, commit: Commit) -> bytes | None:
    found = subtree(repository, commit, "usr/etc") or subtree(repository, commit, "etc")
    return None if found is None else found.tree


def _title(repository: BareRepository, content: Commit, commit: str) -> str:
    values: dict[str, str] = {}
    for name in _OS_RELEASE:
        path = file_object(repository, content, name)
        if path is None:
            continue
        if path.is_symlink():
            path = file_object(repository, content, os.path.normpath(f"{Path(name).parent}/{os.readlink(path)}"))
        if path is not None and not path.is_symlink():
            values = assignments(path.read_text(errors="replace"))
            break
    system = values.get("PRETTY_NAME") or values.get("ID")
    if not system:
        raise UnusableTreeError(commit=commit, reason="its usr/lib/os-release has neither PRETTY_NAME nor ID")
    version = content.version or ""
    title = f"{system} {version}" if version and version not in system else system
    return " ".join(title.split())


def _lay_out(
    sysroot: Sysroot,
    repository: BareRepository,
    content: Commit,
    *,
    commit: str,
    merge: Deployment | None,
    plan: MergePlan,
) -> Path:
    tree = repository.path / "tmp" / _CHECKOUT
    _remove_tree(tree)
    free = free_space_bytes(repository.path)
    if free < _RESERVE_BYTES:
        raise NoSpaceError(path=sysroot.path, needed_bytes=_RESERVE_BYTES, free_bytes=free)
    check_out(repository, content, tree)
    default = tree / "usr/etc"
    if (tree / "etc").is_dir() and not (tree / "etc").is_symlink():
        if default.is_dir() and any((tree / "etc").iterdir()):
            raise UnusableTreeError(commit=commit, reason="it has both /etc and /usr/etc")
        if default.is_dir():
            (tree / "etc").rmdir()
        else:
            (tree / "etc").rename(default)
    if default.is_dir():
        copy_tree(default, tree / "etc")
        if merge is not None:
            apply_merge(plan, current=sysroot.directory(merge) / "etc", new=tree / "etc")
    find_kernel(tree)
    return tree


def _take_name(
    sysroot: Sysroot, tree: Path, *, osname: str, commit: str, origin: Origin, merge: Deployment | None
) -> Deployment:
    home = sysroot.deployments_directory(osname)
    home.mkdir(parents=True, exist_ok=True)
    taken = {int(path.name.rpartition(".")[2]) for path in home.glob(f"{commit}.*") if path.name[65:].isdecimal()}
    serial = max(taken, default=-1) + 1
    layout = find_kernel(tree)
    deployment = Deployment(
        osname=osname,
        commit=commit,
        serial=serial,
        entry=replace(merge.entry, attempts_left=None) if merge is not None else _no_entry(),
        boot_checksum=layout.boot_checksum,
        origin=origin,
    )
    described = KeyFile()
    described.set("origin", "refspec", origin.refspec)
    write_key_file(sysroot.origin_file(deployment), described)
    sync_file_system(tree)
    final = sysroot.directory(deployment)
    tree.rename(final)
    sync_directory(home)
    set_immutable(final, immutable=True)
    return deployment


def _no_entry() -> BootEntry:
    return BootEntry(title="", version=0, arguments=(), linux="")


def _kept(deployments: Sequence[Deployment], *, osname: str, merge: Deployment | None) -> list[Deployment]:
    """Return what stays beside a new deployment: what runs, is merged from, is pinned, or is another system."""
    return [one for one in deployments if one is merge or one.is_booted or one.is_pinned or one.osname != osname]


def _write_or_make_room(
    sysroot: Sysroot, repository: BareRepository, listed: Sequence[Listed], *, deployments: Sequence[Deployment]
) -> None:
    try:
        write_list(sysroot, repository, listed)
    except NoSpaceError:
        kept = {(one.deployment.osname, one.deployment.name) for one in listed}
        staying = [one for one in deployments if (one.osname, one.name) in kept]
        if len(staying) == len(deployments) or not staying:
            raise
    else:
        return
    # Kernels of deployments that go anyway may be all that is in the way. What runs stays bootable meanwhile.
    booted = booted_deployment(tuple(deployments))
    staying.sort(key=lambda one: one is not booted)
    write_list(sysroot, repository, [as_listed(one) for one in staying])
    new = sysroot.directory(listed[0].deployment)
    aside = repository.path / "tmp" / _CHECKOUT
    origin = sysroot.origin_file(listed[0].deployment)
    # `clean_up` removes every tree that no entry leads to; the new one is none of them yet.
    set_immutable(new, immutable=False)
    new.rename(aside)
    held = origin.read_bytes()
    clean_up(sysroot, repository)
    aside.rename(new)
    origin.write_bytes(held)
    set_immutable(new, immutable=True)
    write_list(sysroot, repository, listed)


def _remove_tree(tree: Path) -> None:
    if tree.is_dir():
        set_immutable(tree, immutable=False)
        shutil.rmtree(tree)
