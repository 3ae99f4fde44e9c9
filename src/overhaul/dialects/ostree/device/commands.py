"""What the modes of `refkit-ostree-update` do, once the command line is read, and how they tell of it."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.exitcodes import ExitCode
from overhaul.dialects.ostree.device.listing import as_assignments, as_lines, entries_of
from overhaul.dialects.ostree.device.service import serve, stopping_on_signals
from overhaul.dialects.ostree.device.settings import DEFAULT_PATH, UpdateSettings, load_settings
from overhaul.dialects.ostree.device.updating import Mode, Outcome, Result, Updater, confirm, roll_back, run_cycle
from overhaul.dialects.ostree.device.wiring import Choices, open_sysroot, open_updater
from overhaul.errors import OverhaulError

_DETAILED = {
    Result.UP_TO_DATE: ExitCode.NOTHING_TO_DO,
    Result.REFUSED: ExitCode.HELD,
    Result.RESTART_HELD: ExitCode.HELD,
}


def carry_out(mode: str, options: dict[str, Any]) -> int:
    """Carry out `mode` (empty: fetch and apply) with the options of the command line, and return the exit code."""
    config: Path | None = options["config"]
    settings = load_settings(config or DEFAULT_PATH, must_exist=config is not None)
    teller = _Teller(
        as_json=options["as_json"],
        is_quiet=_is_quiet(options["log_levels"], options["verbose"]),
        stops_at_conflicts=settings.deploy.conflicts == "stop",
    )
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
    is_service = not options["one_shot"] and mode not in {"confirm", "rollback", "preview"}
    # A service that was stopped did what it should.
    with stopping_on_signals(stopped_code=ExitCode.DONE if is_service else ExitCode.INTERRUPTED) as stopped:
        cycle_mode = {"fetch_only": Mode.FETCH_ONLY, "apply_only": Mode.APPLY_ONLY}.get(mode, Mode.BOTH)
        if is_service:
            return _serve(settings, choices, cycle_mode, stopped=stopped, teller=teller)
        outcome = _act_once(open_updater(settings, choices), mode, cycle_mode, teller)
        teller.outcome(outcome)
        return _exit_code(outcome, is_detailed=options["detailed_exit_code"])


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


def _act_once(updater: Updater, mode: str, cycle_mode: Mode, teller: "_Teller") -> Outcome:
    if mode == "confirm":
        return confirm(updater)
    if mode == "rollback":
        return roll_back(updater)
    if mode != "preview":
        return run_cycle(updater, cycle_mode)
    outcome = run_cycle(updater, Mode.FETCH_ONLY)
    if outcome.result is Result.FETCHED:
        plan = updater.backend.preview(osname=_osname_of(updater), commit=outcome.commit)
        teller.merge(plan, is_asked=True)
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

    def __init__(self, *, as_json: bool, is_quiet: bool, stops_at_conflicts: bool) -> None:
        self._as_json = as_json
        self._is_quiet = is_quiet
        self._usual_end = "stops the update" if stops_at_conflicts else "yours is kept"

    def merge(self, plan: MergePlan, *, is_asked: bool = False) -> None:
        """Show what becomes of the owner's changes in /etc, conflicts above all; that there are none when asked."""
        if self._as_json or self._is_quiet:
            return
        if is_asked and not (plan.changes or plan.skipped or plan.conflicts):
            click.echo("/etc: nothing was changed here, all of it will be the update's")
        for change in plan.changes:
            click.echo(f"/etc/{change.path}: {change.change}, kept")
        for path in plan.skipped:
            click.echo(f"warning: /etc/{path}: neither file, link nor directory, left behind", err=True)
        for conflict in plan.conflicts:
            end = "cannot be merged" if conflict.blocks else self._usual_end
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
