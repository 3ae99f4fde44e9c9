"""How a device starts whose kernel, initial file system and command line are one UEFI application (refkit).

That command line is the same for every deployment, so it cannot say which one to start: the initial file system takes
the boot loader's default entry instead and swaps the mounts (`prepare_root`),

    /rootfs/ostree/deploy/OS/deploy/COMMIT.SERIAL   becomes /rootfs
    /rootfs                                         becomes /rootfs/sysroot
    ostree/deploy/OS/var, boot and home             are shown below the new /rootfs

and early in the boot the missing argument is added to what `/proc/cmdline` shows (`patch_procfs`), since the programs
of OSTree look for it there.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from overhaul.dialects.ostree.device.bootentry import split_arguments
from overhaul.dialects.ostree.device.mounts import Mounts
from overhaul.dialects.ostree.device.sysroot import (
    Deployment,
    Running,
    Sysroot,
    SysrootError,
    booted_deployment,
)
from overhaul.host.files import replace_bytes

#: Where the initial file system has the physical root.
INITIAL_ROOT = Path("/rootfs")


def prepare_root(
    mounts: Mounts, *, root: Path = INITIAL_ROOT, told: Callable[[str], None] = lambda _problem: None
) -> Deployment | None:
    """Let the default deployment take the place of the physical root at `root`, which must be a mount point.

    An entry that leads to no deployment is `told` and passed over: the next one starts.

    Returns:
        The deployment; None when `root` has no deployments or shows one already, and nothing was changed.

    Raises:
        SysrootError: The boot loader's entries lead to no deployment.
        OSError: The kernel refused a mount; those made before are taken back.
    """
    if (root / "ostree").is_symlink() or not (root / "ostree/deploy").is_dir():
        return None
    sysroot = Sysroot(root, running=Running(root=None, boot_id=""))
    startable, problems = sysroot.startable()
    for problem in problems:
        told(problem)
    if not startable:
        raise SysrootError(path=root, reason="its boot loader has no entry that leads to a deployment of OSTree.")
    newest = startable[0]
    directory = sysroot.directory(newest)
    between = root.with_name(f"{root.name}.deployment")
    between.mkdir(exist_ok=True)
    with ExitStack() as undo:
        undo.callback(between.rmdir)
        mounts.bind(directory, directory)
        undo.callback(mounts.detach, directory)
        for source, target in _shared(root, newest, directory):
            mounts.bind(source, target)
        mounts.move(directory, between)
        undo.callback(mounts.move, between, directory)
        mounts.move(root, between / "sysroot")
        undo.callback(mounts.move, between / "sysroot", root)
        mounts.move(between, root)
        undo.pop_all()
    between.rmdir()
    return newest


def _shared(root: Path, deployment: Deployment, directory: Path) -> list[tuple[Path, Path]]:
    pairs = [(root / "ostree/deploy" / deployment.osname / "var", directory / "var")]
    for name in ("boot", "home"):
        # Trees of another layout have a link there, into the state that is shown already.
        if (root / name).is_dir() and (directory / name).is_dir() and not (directory / name).is_symlink():
            pairs.append((root / name, directory / name))
    return pairs


def patch_procfs(mounts: Mounts, *, sysroot: Path, root: Path = Path("/")) -> str:
    """Show the running deployment's boot link in `/proc/cmdline`, and mark the system as started by OSTree.

    Returns:
        The argument that was added; empty when the command line has one.

    Raises:
        SysrootError: No deployment runs.
    """
    status = root.stat()
    running = Running(root=(status.st_dev, status.st_ino), boot_id="")
    booted = booted_deployment(Sysroot(sysroot, running=running).startable()[0])
    if booted is None:
        raise SysrootError(path=sysroot, reason="what runs is none of its deployments.")
    (root / "run/ostree-booted").touch()
    command_line = root / "proc/cmdline"
    text = command_line.read_text().rstrip("\n")
    if any(word.startswith("ostree=") for word in split_arguments(text)):
        return ""
    argument = f"ostree={booted.entry.boot_link}"
    patched = root / "run/overhaul-ostree/cmdline"
    patched.parent.mkdir(exist_ok=True)
    replace_bytes(patched, f"{text} {argument}\n".encode(), mode=0o444)
    mounts.bind(patched, command_line)
    return argument
