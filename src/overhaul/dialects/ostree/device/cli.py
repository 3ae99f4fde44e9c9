"""`refkit-ostree-update`: the updater of an OSTree device, with the options of the program it replaces.

Exit codes are this program's own and stand in `docs/reference/refkit-ostree-update.md`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from overhaul.dialects.ostree.device.earlyboot import INITIAL_ROOT, patch_procfs, prepare_root
from overhaul.dialects.ostree.device.exitcodes import INTERRUPTED_SENTENCE, ExitCode
from overhaul.dialects.ostree.device.mounts import SystemMounts
from overhaul.dialects.ostree.device.sysroot import system_root
from overhaul.errors import OverhaulError

_Command = TypeVar("_Command", bound=Callable[..., object])
_DEFAULT_PREFIX = "REFKIT_OSTREE"


def _last_mode_wins(context: click.Context, parameter: click.Parameter, value: bool) -> bool:  # noqa: FBT001
    if value:
        modes = context.meta.setdefault("modes", [])
        modes.append(parameter.name)
        if len(modes) > 1:
            click.echo(f"warning: --{modes[-1].replace('_', '-')} overrides --{modes[-2].replace('_', '-')}", err=True)
    return value


def _mode_option(*names: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(*names, is_flag=True, callback=_last_mode_wins, help=text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_mode_option("-F", "--fetch-only", text="Fetch, and never deploy.")
@_mode_option("-A", "--apply-only", text="Deploy what was fetched, without asking the server.")
@_mode_option("--confirm", text="Check the health of a new deployment that runs, keep it or go back.")
@_mode_option("--rollback", text="Let the deployment before the latest boot next, and refuse what is left.")
@_mode_option("--status", text="Tell what is deployed and how far an update is.")
@_mode_option("--preview", text="Fetch, and show what deploying would do to /etc.")
@_mode_option("-b", "--boot-entries", text="Print all boot entries.")
@_mode_option("-r", "--running-entry", text="Print the boot entry that runs.")
@_mode_option("-L", "--latest-entry", text="Print the boot entry that boots next.")
@_mode_option("-p", "--patch-procfs", text="Show the running entry's boot link in /proc/cmdline.")
@_mode_option("-I", "--prepare-root", text="Let the latest deployment take the place of /rootfs (initramfs).")
@click.option("-O", "--one-shot", is_flag=True, help="Do one cycle and end.")
@click.option("-i", "--check-interval", type=click.FloatRange(min=1, max=604800), help="Seconds between two cycles.")
@click.option("-P", "--post-apply-hook", help="Run this program instead of post-apply.d; empty: none.")
@click.option("-s", "--shell", is_flag=True, help="Print entries as shell assignments.")
@click.option("-S", "--shell-export", is_flag=True, help="Print entries as exported shell assignments.")
@click.option("-V", "--prefix", default=_DEFAULT_PREFIX, show_default=True, help="Prefix of shell assignments.")
@click.option("--os", "osname", default="", help="The operating system, where several are deployed.")
@click.option("--sysroot", type=click.Path(path_type=Path), default=Path("/"), help="The system root.")
@click.option("--config", type=click.Path(path_type=Path), help="Instead of /etc/overhaul/ostree-update.toml.")
@click.option("--allow-downgrade", is_flag=True, help="Accept an older commit once.")
@click.option("--no-reboot", is_flag=True, help="Leave the restart to the owner.")
@click.option("--detailed-exit-code", is_flag=True, help="20: nothing to do, 21: it has to wait.")
@click.option("-l", "--log", "log_levels", default="", help="Levels: none, all, fatal, error, warn, info, debug.")
@click.option("-v", "--verbose", count=True, help="Say more.")
@click.option("-d", "--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(**options: Any) -> int:
    """Keep this OSTree device up to date."""
    modes: Sequence[str] = click.get_current_context().meta.get("modes", [])
    mode = modes[-1] if modes else ""
    # The boot must not depend on the configuration.
    if mode in {"patch_procfs", "prepare_root"}:
        _start_device(mode, options["sysroot"])
        return ExitCode.DONE
    # Loaded only here: a start of the device does not wait for what only updates need.
    from overhaul.dialects.ostree.device.commands import carry_out

    return carry_out(mode, options)


def _start_device(mode: str, sysroot: Path) -> None:
    if mode == "prepare_root":
        root = INITIAL_ROOT if sysroot == Path("/") else sysroot
        prepare_root(SystemMounts(), root=root, told=lambda problem: click.echo(f"warning: {problem}", err=True))
    else:
        patch_procfs(SystemMounts(), sysroot=system_root(sysroot))


def _error_code(error: OverhaulError) -> int:
    from overhaul.dialects.ostree.device.hooks import HookFailedError
    from overhaul.install.health import UnhealthyError

    if isinstance(error, HookFailedError):
        return ExitCode.HOOK_FAILED
    if isinstance(error, UnhealthyError):
        return ExitCode.UNHEALTHY
    return error.exit_code


def main() -> NoReturn:
    """Run the program and leave with the exit code of what happened."""
    try:
        code = command.main(standalone_mode=False)
    except OverhaulError as error:
        if "-d" in sys.argv or "--debug" in sys.argv:
            raise
        _tell(type(error).__name__, str(error), retryable=error.retryable)
        sys.exit(_error_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        place = error.filename if error.filename is not None else "a file it was working on"
        reason = error.strerror or str(error)
        sentence = f"The system refused {place}: {reason}. Check rights and free space, and run the command again."
        _tell("DeviceRefusalError", sentence, retryable=False)
        sys.exit(6)
    except (click.Abort, KeyboardInterrupt):
        click.echo(INTERRUPTED_SENTENCE, err=True)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(name: str, message: str, *, retryable: bool) -> None:
    if "--json" in sys.argv:
        import msgspec

        document = {"error": name, "message": message, "retryable": retryable}
        click.echo(msgspec.json.encode(document).decode(), err=True)
    else:
        click.echo(f"error: {message}", err=True)
