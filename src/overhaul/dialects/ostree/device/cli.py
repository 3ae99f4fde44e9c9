"""`refkit-ostree-update`: the updater of an OSTree device, with the options of the program it replaces.

Exit codes are this program's own and stand in `docs/reference/refkit-ostree-update.md`.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from overhaul.dialects.ostree.device.earlyboot import INITIAL_ROOT, patch_procfs, prepare_root
from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.hooks import HookFailedError
from overhaul.dialects.ostree.device.listing import as_assignments, as_lines, entries_of
from overhaul.dialects.ostree.device.mounts import SystemMounts
from overhaul.dialects.ostree.device.service import serve, stopping_on_signals
from overhaul.dialects.ostree.device.settings import DEFAULT_PATH, UpdateSettings, load_settings
from overhaul.dialects.ostree.device.updating import Mode, Outcome, Result, Updater, confirm, roll_back, run_cycle
from overhaul.dialects.ostree.device.wiring import Choices, open_sysroot, open_updater, system_root
from overhaul.errors import OverhaulError
from overhaul.install.health import UnhealthyError

_Command = TypeVar("_Command", bound=Callable[..., object])
_DEFAULT_PREFIX = "REFKIT_OSTREE"


class ExitCode(IntEnum):
    """What the program adds to the families of `overhaul.errors`."""

    DONE = 0
    HOOK_FAILED = 9
    UNHEALTHY = 10
    NOTHING_TO_DO = 20
    HELD = 21
    INTERRUPTED = 130


_DETAILED = {
    Result.UP_TO_DATE: ExitCode.NOTHING_TO_DO,
    Result.REFUSED: ExitCode.HELD,
    Result.RESTART_HELD: ExitCode.HELD,
}


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
@click.option("--config", type=click.Path(path_type=Path), help=f"Configuration instead of {DEFAULT_PATH}.")
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
    config: Path | None = options["config"]
    settings = load_settings(config or DEFAULT_PATH, must_exist=config is not None)
    teller = _Teller(as_json=options["as_json"], is_quiet=_is_quiet(options["log_levels"], options["verbose"]))
    choices = Choices(
        sysroot=options["sysroot"],
        osname=options["osname"],
        post_apply_hook=options["post_apply_hook"],
        allows_downgrade=options["allow_downgrade"],
        reboots=not options["no_reboot"],
        show_merge=teller.merge,
    )
    if mode in {"boot_entries", "running_entry", "latest_entry"} or options["shell"] or options["shell_export"]:
        _print_entries(choices, mode, options)
        return ExitCode.DONE
    if options["check_interval"] is not None:
        settings = msgspec.structs.replace(settings, check_interval_s=options["check_interval"])
    if mode == "status":
        teller.status(open_updater(settings, choices))
        return ExitCode.DONE
    if mode in {"confirm", "rollback", "preview"}:
        outcome = _carry_out(open_updater(settings, choices), mode, teller)
        teller.outcome(outcome)
        return _exit_code(outcome, is_detailed=options["detailed_exit_code"])
    cycle_mode = {"fetch_only": Mode.FETCH_ONLY, "apply_only": Mode.APPLY_ONLY}.get(mode, Mode.BOTH)
    with stopping_on_signals() as stopped:
        if options["one_shot"]:
            outcome = run_cycle(open_updater(settings, choices), cycle_mode)
            teller.outcome(outcome)
            return _exit_code(outcome, is_detailed=options["detailed_exit_code"])
        return _serve(settings, choices, cycle_mode, stopped=stopped, teller=teller)


def _start_device(mode: str, sysroot: Path) -> None:
    if mode == "prepare_root":
        root = INITIAL_ROOT if sysroot == Path("/") else sysroot
        prepare_root(SystemMounts(), root=root, told=lambda problem: click.echo(f"warning: {problem}", err=True))
    else:
        patch_procfs(SystemMounts(), sysroot=system_root(sysroot))


def _serve(
    settings: UpdateSettings, choices: Choices, mode: Mode, *, stopped: threading.Event, teller: "_Teller"
) -> int:
    def told(happened: Outcome | OverhaulError) -> None:
        if isinstance(happened, OverhaulError):
            teller.problem(happened)
        else:
            teller.outcome(happened)

    try:
        # Opened anew for each cycle: remotes, keys and deployments may have changed meanwhile.
        serve(
            lambda: run_cycle(open_updater(settings, choices), mode),
            interval_s=settings.check_interval_s,
            stopped=stopped,
            told=told,
        )
    except KeyboardInterrupt:
        if not stopped.is_set():
            raise
    return ExitCode.DONE


def _carry_out(updater: Updater, mode: str, teller: "_Teller") -> Outcome:
    if mode == "confirm":
        return confirm(updater)
    if mode == "rollback":
        return roll_back(updater)
    outcome = run_cycle(updater, Mode.FETCH_ONLY)
    if outcome.result is Result.FETCHED:
        plan = updater.backend.preview(osname=_osname_of(updater), commit=outcome.commit)
        teller.merge(plan)
        outcome = replace(outcome, merge=plan)
    return outcome


def _osname_of(updater: Updater) -> str:
    target = updater.states.load().target
    return target.osname if target is not None else updater.osname


def _print_entries(choices: Choices, mode: str, options: dict[str, Any]) -> None:
    sysroot = open_sysroot(choices)
    entries = entries_of(sysroot, sysroot.deployments())
    shown = entries
    if mode == "running_entry":
        shown = [entry for entry in entries if entry.is_booted]
    elif mode == "latest_entry":
        shown = entries[:1]
    if options["shell"] or options["shell_export"]:
        lines = as_assignments(entries, shown=shown, prefix=options["prefix"], exports=options["shell_export"])
    else:
        lines = as_lines(shown)
    for line in lines:
        click.echo(line)


def _exit_code(outcome: Outcome, *, is_detailed: bool) -> int:
    return _DETAILED.get(outcome.result, ExitCode.DONE) if is_detailed else ExitCode.DONE


def _is_quiet(levels: str, verbose: int) -> bool:
    if verbose:
        return False
    if levels:
        return not {"all", "info", "debug", "daemon", "console"} & set(levels.split(","))
    return False


class _Teller:
    """Sentences for people and the journal, one document for scripts."""

    def __init__(self, *, as_json: bool, is_quiet: bool) -> None:
        self._as_json = as_json
        self._is_quiet = is_quiet

    def merge(self, plan: MergePlan) -> None:
        """Show what becomes of the owner's changes in /etc, conflicts above all."""
        if self._as_json or self._is_quiet:
            return
        for change in plan.changes:
            click.echo(f"/etc/{change.path}: {change.change}, kept")
        for path in plan.skipped:
            click.echo(f"warning: /etc/{path}: neither file, link nor directory, left behind", err=True)
        for conflict in plan.conflicts:
            end = "cannot be merged" if conflict.blocks else "yours is kept"
            sides = f"{conflict.local} here, {conflict.default} by the update"
            click.echo(f"warning: /etc/{conflict.path}: {sides}: {end}", err=True)

    def outcome(self, outcome: Outcome) -> None:
        """Tell what a cycle came to."""
        if self._as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode())
        elif not self._is_quiet:
            named = f" {outcome.version or outcome.commit[:12]}" if outcome.commit else ""
            detail = f" ({outcome.detail})" if outcome.detail else ""
            click.echo(f"{outcome.result}{named}{detail}")

    def status(self, updater: Updater) -> None:
        """Tell what is deployed and how far an update is."""
        state = updater.states.load()
        entries = entries_of(updater.sysroot, updater.backend.deployments())
        if self._as_json:
            document = {"state": state, "entries": entries, "backend": updater.backend.name}
            click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
            return
        for line in as_lines(entries):
            click.echo(line)
        target = f", target {state.target.commit}" if state.target is not None else ""
        click.echo(f"update: {state.phase}{target}; back end {updater.backend.name}")
        for refused in state.refused:
            click.echo(f"refused: {refused.commit} ({refused.reason})")

    def problem(self, error: OverhaulError) -> None:
        """Tell what failed; the service goes on."""
        click.echo(f"error: {error}", err=True)


def _error_code(error: OverhaulError) -> int:
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
        click.echo("Interrupted; what was done so far is kept, run the command again to go on.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(name: str, message: str, *, retryable: bool) -> None:
    if "--json" in sys.argv:
        document = {"error": name, "message": message, "retryable": retryable}
        click.echo(msgspec.json.encode(document).decode(), err=True)
    else:
        click.echo(f"error: {message}", err=True)
