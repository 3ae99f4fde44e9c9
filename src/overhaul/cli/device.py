"""`overhaul device`: the agent of the machine it runs on."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from overhaul.agent.outcomes import (
    Checked,
    Confirmed,
    ExitCode,
    Ready,
    Restart,
    RestartAnswer,
    RolledBack,
    Status,
    Updated,
)
from overhaul.agent.ports import Device
from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars
from overhaul.errors import InputError
from overhaul.install.settings import DEFAULT_PATH, load_settings
from overhaul.install.state import Event
from overhaul.policy.selection import Offer
from overhaul.release.record import ReleaseId

if TYPE_CHECKING:
    from overhaul.agent.previewing import Previewed

config_option: Callable[[Any], Any] = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The device's configuration.",
)


class ConfigurationExistsError(InputError):
    """`init` would overwrite a configuration."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} exists already; edit it, or say --force to write it anew.")


class SlotOptionError(InputError):
    """A `--slot` that is not NAME=PATH, or whose name is taken."""

    def __init__(self, *, text: str, reason: str) -> None:
        self.text = text
        self.reason = reason
        super().__init__(f"--slot {text!r} {reason}; write for example --slot A=/dev/disk/by-partlabel/root-a.")


class _Outcome(Protocol):
    @property
    def exit_code(self) -> ExitCode: ...


_T = TypeVar("_T", bound=_Outcome)

_BOOT_FILES = {
    "grub": "/boot/grub/grubenv",
    "systemd-boot": "/boot",
    "uboot": "/etc/fw_env.config",
    "file": "boot.json",
}


@click.group()
def command() -> None:
    """The device's agent: check for updates, install them, confirm them, roll back.

    \b
    A device's life:
      overhaul device init --product weather --channel stable --url https://updates.example.com \\
          --slot A=/dev/disk/by-partlabel/root-a --slot B=/dev/disk/by-partlabel/root-b
      overhaul device check        what is there for this device, and why
      overhaul device update       install it into the other slot
      reboot                       the new slot is tried
      overhaul device confirm      its health decides whether it stays

    Exit codes: 0 done or an offer, 20 nothing to do, 21 held, 3 to 8 a failure by who must act.
    """


@command.command()
@config_option
@click.option("--product", required=True, help="Name of the product.")
@click.option("--variant", default="default", show_default=True, help="Variant of the product.")
@click.option("--arch", default=None, help="Architecture  [default: this machine's]")
@click.option("--channel", default=None, help="Channel to follow  [default: OVERHAUL_CHANNEL of os-release]")
@click.option("--version", default=None, help="Version that runs now  [default: os-release]")
@click.option("--build-id", default=None, help="Build id that runs now  [default: os-release]")
@click.option("--url", "urls", multiple=True, required=True, help="Repository address; further ones are mirrors.")
@click.option("--allow-http", is_flag=True, help="Allow plain http addresses.")
@click.option("--slot", "slots", multiple=True, required=True, metavar="NAME=PATH", help="A slot; give two or more.")
@click.option("--root-metadata", default="root.json", show_default=True, help="The trust anchor.")
@click.option("--state-directory", default="/var/lib/overhaul", show_default=True, help="Outside the slots.")
@click.option("--boot", "backend", type=click.Choice(list(_BOOT_FILES)), default="grub", show_default=True)
@click.option(
    "--boot-file",
    default=None,
    help="grubenv, boot partition or JSON file  [default: /boot/grub/grubenv, /boot, boot.json]",
)
@click.option("--report-url", default="", help="Opt in: where to tell how updates went.")
@click.option("--force", is_flag=True, help="Overwrite an existing configuration.")
@json_option
def init(
    config: Path,
    product: str,
    variant: str,
    arch: str | None,
    channel: str | None,
    version: str | None,
    build_id: str | None,
    urls: tuple[str, ...],
    allow_http: bool,
    slots: tuple[str, ...],
    root_metadata: str,
    state_directory: str,
    backend: str,
    boot_file: str | None,
    report_url: str,
    force: bool,
    as_json: bool,
) -> int:
    """Write a commented configuration and the first state.

    \b
    Example, a virtual device with files as slots:
      overhaul device init --config vm/device.toml --product weather --channel stable \\
          --url http://127.0.0.1:8080 --allow-http --slot A=slot-a.img --slot B=slot-b.img \\
          --boot file --state-directory state --version 1.0 --build-id 1
    """
    from overhaul.agent.wiring import open_device
    from overhaul.host.files import replace_bytes
    from overhaul.install.settings import parse_settings
    from overhaul.install.template import Answers, render_template

    if config.exists() and not force:
        raise ConfigurationExistsError(path=config)
    answers = Answers(
        product=product,
        variant=variant,
        arch=arch or platform.machine(),
        channel=channel,
        version=version,
        build_id=build_id,
        urls=urls,
        allow_http=allow_http,
        slots=_slots(slots),
        root_metadata=root_metadata,
        state_directory=state_directory,
        boot_backend=backend,
        boot_file=boot_file or _BOOT_FILES[backend],
        report_url=report_url,
    )
    text = render_template(answers).encode()
    settings = parse_settings(text, config)
    config.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(config, text)
    device = open_device(settings)
    device.states.load()
    if as_json:
        print_json({"config": str(config), "state": str(device.states.path)})
    else:
        click.echo(f"Wrote {config} and {device.states.path}.")
        if not Path(settings.root_metadata).exists():
            click.echo(f"Next: bring the repository's first root metadata to {settings.root_metadata}.")
    return ExitCode.DONE


@command.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Ask whether there is an update, and say why; nothing is started.

    \b
    Examples:
      overhaul device check
      overhaul device check --json | jq .decision
    """
    from overhaul.agent.checking import check as run_check

    return _answer(run_check(_device(config)), as_json=as_json, show=_show_checked)


@command.command()
@config_option
@click.argument("release", required=False)
@json_option
def preview(config: Path, release: str | None, as_json: bool) -> int:
    """Show what an update would do to this device's configuration, before anything of it is fetched.

    RELEASE is VERSION or VERSION/BUILD of the channel; left out, the one that is offered. Nothing is installed, and
    nothing in /etc is changed.

    \b
    Examples:
      overhaul device preview
      overhaul device preview 2.1/20260801 --json | jq '.files[] | select(.fate == "conflict")'
    """
    from overhaul.agent.previewing import preview as run_preview

    return _answer(run_preview(_device(config), release), as_json=as_json, show=_show_preview)


@command.command()
@config_option
@json_option
def update(config: Path, as_json: bool) -> int:
    """Install what the policy offers into the idle slot, and have the boot loader try it.

    Killed or cut off it goes on where it was when it is run again. The running slot is never touched.

    \b
    Examples:
      overhaul device update
      overhaul device update --json --config vm/device.toml
    """
    from overhaul.agent.updating import update as run_update

    device = _device(config)
    with progress_bars(quiet=as_json) as progress:
        outcome = run_update(device, progress=progress)
    return _answer(outcome, as_json=as_json, show=show_updated)


@command.command()
@config_option
@json_option
def carry(config: Path, as_json: bool) -> int:
    """Carry the configuration over once more for an update that waits for its restart; asks no network.

    `device update` does the same whenever it finds such an update. Run before a restart, as overhaul-carry.service
    does, it brings along what was changed until the last moment.

    \b
    Example:
      overhaul device carry && reboot
    """
    from overhaul.agent.configuring import carry_again

    was_carried = carry_again(_device(config))
    if as_json:
        print_json({"carried": was_carried})
    else:
        click.echo("The configuration was carried over." if was_carried else "No update waits for its restart.")
    return ExitCode.DONE if was_carried else ExitCode.NOTHING_TO_DO


@command.command()
@config_option
@json_option
def confirm(config: Path, as_json: bool) -> int:
    """Check the health of the running slot and keep it, or go back and never take its version again.

    \b
    Example, as the service does after each start:
      overhaul device confirm
    """
    from overhaul.agent.confirming import confirm as run_confirm

    return _answer(run_confirm(_device(config)), as_json=as_json, show=_show_confirmed)


@command.command()
@config_option
@json_option
def rollback(config: Path, as_json: bool) -> int:
    """Go back to the other confirmed slot, or call off an update that waits for its restart.

    The version that is left is not installed again.

    \b
    Example:
      overhaul device rollback && reboot
    """
    from overhaul.agent.going_back import roll_back

    return _answer(roll_back(_device(config)), as_json=as_json, show=_show_rolled_back)


@command.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> int:
    """Show what runs, what boots next, and what is under way; asks no network.

    \b
    Examples:
      overhaul device status
      overhaul device status --json | jq -r .phase
    """
    from overhaul.agent.looking import status as look

    return _answer(look(_device(config)), as_json=as_json, show=_show_status)


@command.command()
@config_option
@json_option
def history(config: Path, as_json: bool) -> int:
    """Show what happened on this device, the oldest first.

    \b
    Example:
      overhaul device history
    """
    from overhaul.agent.looking import history as look_back

    events = look_back(_device(config))
    if as_json:
        print_json(events)
    elif not events:
        click.echo("Nothing has happened on this device yet.")
    else:
        for event in events:
            click.echo(_event_line(event))
    return ExitCode.DONE


@command.command()
@config_option
@json_option
def share(config: Path, as_json: bool) -> int:
    """Give neighbours on this network pieces of the releases in this device's slots, until it is told to end.

    Off unless `listen` in [share] of the configuration names an address. Only private and link-local addresses are
    answered, within the caps of [share], and never on a metered link.

    \b
    Example, as the service does:
      overhaul device share
    """
    from overhaul.agent.sharing.running import run_share

    def started(host: str, port: int) -> None:
        if not as_json:
            click.echo(f"Sharing on {host} port {port}.")

    given_bytes = run_share(load_settings(config), started=started)
    if as_json:
        print_json({"given_bytes": given_bytes})
    else:
        click.echo(f"Gave {human_bytes(given_bytes)} to neighbours.")
    return ExitCode.DONE


def _device(config: Path) -> Device:
    from overhaul.agent.wiring import open_device

    return open_device(load_settings(config))


def _answer(outcome: _T, *, as_json: bool, show: Callable[[_T], None]) -> int:
    if as_json:
        print_json(outcome)
    else:
        show(outcome)
    return outcome.exit_code


def _slots(texts: tuple[str, ...]) -> dict[str, str]:
    slots: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise SlotOptionError(text=text, reason="is not NAME=PATH")
        if name in slots:
            raise SlotOptionError(text=text, reason=f"names slot {name} a second time")
        slots[name] = path
    return slots


def _show_checked(checked: Checked) -> None:
    for position, reason in enumerate(checked.decision.reasons):
        click.echo(reason.text if position == 0 else f"  {reason.text}")
    if checked.waits:
        click.echo(checked.waits)
    elif isinstance(checked.decision, Offer):
        click.echo("Install it with: overhaul device update")


def _show_preview(outcome: "Previewed | Checked") -> None:
    if isinstance(outcome, Checked):
        _show_checked(outcome)
        return
    from overhaul.cli.preview import show_preview

    show_preview(outcome)


def show_updated(outcome: Updated | Ready | Checked) -> None:
    """Print what an update did, for people."""
    if isinstance(outcome, Checked):
        _show_checked(outcome)
        return
    if isinstance(outcome, Ready):
        click.echo(f"{_name(outcome.release)} is installed in slot {outcome.slot} already.")
        _show_restart(outcome.restart, f"slot {outcome.slot} is tried then")
        return
    part = outcome.bytes_received / outcome.image_bytes if outcome.image_bytes else 0.0
    rows = [
        ("Installed", f"{_name(outcome.to_release)} into slot {outcome.slot}, from {_name(outcome.from_release)}"),
        ("Image", f"{human_bytes(outcome.image_bytes)}, every byte read back and checked"),
        (
            "Downloaded",
            f"{human_bytes(outcome.bytes_received)}, {part:.1%} of the image, {outcome.requests} requests",
        ),
        ("Reused", human_bytes(outcome.reused_bytes)),
        *([("Neighbours", human_bytes(outcome.neighbour_bytes))] if outcome.neighbour_bytes else []),
        ("Way", outcome.way + (f", {outcome.repaired_chunks} chunks mended" if outcome.repaired_chunks else "")),
        ("Signatures", "metadata, policy and release record verified from the trust anchor"),
        ("Time", f"{outcome.seconds:.1f} s"),
        ("Peak memory", human_bytes(outcome.peak_memory_bytes)),
    ]
    for label, text in rows:
        click.echo(f"{label:<12} {text}")
    _show_restart(outcome.restart, f"slot {outcome.slot} is tried then")


def _show_confirmed(outcome: Confirmed) -> None:
    for result in outcome.checks:
        click.echo(f"{'ok' if result.passed else 'FAILED':<7} {result.name} ({result.seconds:.1f} s)")
    state = "was confirmed already" if outcome.was_confirmed else "is confirmed and boots from now on"
    click.echo(f"Slot {outcome.slot} with {_name(outcome.release)} {state}.")


def _show_rolled_back(outcome: RolledBack) -> None:
    if outcome.to_release is None:
        click.echo(f"{_name(outcome.from_release)} was called off before it ran, and is not installed again.")
    else:
        click.echo(
            f"Going back from {_name(outcome.from_release)}, which is not installed again, to "
            f"{_name(outcome.to_release)} in slot {outcome.slot}."
        )
    if outcome.restart is not None:
        _show_restart(outcome.restart, f"slot {outcome.slot} boots then")


def _show_status(outcome: Status) -> None:
    click.echo(f"Running  {_name(outcome.running)} in slot {outcome.running_slot}; slot {outcome.next_slot} boots next")
    click.echo(f"Channel  {outcome.channel}, last asked {_time(outcome.checked_at) if outcome.checked_at else 'never'}")
    click.echo(f"Phase    {outcome.phase}" + (f": {_name(outcome.target.release)}" if outcome.target else ""))
    for name, slot in outcome.slots.items():
        attempts = f", {slot.attempts_left} attempts left" if slot.attempts_left else ""
        holds = _name(slot.content.release) if slot.content else "unknown"
        click.echo(f"Slot {name:<3} {slot.status}{attempts}: {holds}  {slot.path}")
    for refused in outcome.refused:
        click.echo(f"Refused  {refused.version} ({refused.build_id}): {refused.reason}")
    if outcome.last_event is not None:
        click.echo(f"Last     {_event_line(outcome.last_event)}")


def _show_restart(answer: RestartAnswer, then: str) -> None:
    match answer.restart:
        case Restart.REQUESTED:
            click.echo(f"The restart is asked for; {then}.")
        case Restart.LEFT_TO_OWNER:
            click.echo(f"Restart the device when it suits you; {then}.")
        case Restart.POSTPONED:
            click.echo(f"Not restarted yet: {answer.reason}")


def _event_line(event: Event) -> str:
    detail = f": {event.detail}" if event.detail else ""
    return f"{_time(event.at)}  {event.kind:<12} {event.version} ({event.build_id}) in slot {event.slot}{detail}"


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _name(release: ReleaseId) -> str:
    return f"{release.version} ({release.build_id})"
