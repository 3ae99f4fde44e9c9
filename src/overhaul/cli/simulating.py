"""`overhaul policy export` and `simulate`: try a policy on recorded check-ins before it is signed."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import msgspec

from overhaul.cli.explain import parse_time, published_policy
from overhaul.cli.opening import parse_percent, parse_release, repository_option
from overhaul.cli.output import human_bytes, json_option, print_json
from overhaul.errors import InputError
from overhaul.host.files import replacing
from overhaul.policy.document import MAX_POLICY_BYTES, Policy, decode_policy
from overhaul.policy.edit import set_rollout
from overhaul.policy.replay import RecordedDevice, Replayed, read_fleet, replay
from overhaul.policy.rollout import Rollout, as_utc
from overhaul.policy.steering import RolloutPlan
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.policies import check_channel
from overhaul.publishing.simulating import as_planned, sizes_of

_DAY_S = 24 * 3600
_MAX_SLICES = 2000
_SHOWN = 20


class EmptyFleetError(InputError):
    """A simulation without devices would say that nothing can happen."""

    def __init__(self, *, where: str, next_step: str) -> None:
        self.where = where
        super().__init__(f"{where} holds no check-in of a device; {next_step}.")


@click.command(name="export")
@click.argument("channel", metavar="PRODUCT/CHANNEL")
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--days", type=click.FloatRange(min=0.1, max=366), default=7.0, show_default=True, help="How far back.")
@click.option("--seed", type=int, default=1, show_default=True, help="Draws the devices' rollout ids.")
@repository_option
@json_option
def export_command(channel: str, target: Path, days: float, seed: int, directory: Path, as_json: bool) -> None:
    """Write the fleet that recent check-ins show to FILE, for `simulate`.

    Reports name no device, so these are devices of the same kinds and numbers, with rollout ids of their own.

    \b
    Example:
      overhaul policy export kiosk/stable fleet.jsonl --days 7
    """
    from overhaul.server.database.engine import Database
    from overhaul.server.database.migrating import upgrade
    from overhaul.server.recorded_fleet import recorded_fleet
    from overhaul.server.settings import ServerSettings

    product, name = _channel_of(channel)
    check_channel(open_repository(directory), product, name)
    end = int(time.time())
    devices = 0
    with closing(Database(ServerSettings.of_repository(directory).database_url)) as database:
        upgrade(database)
        fleet = recorded_fleet(
            database, product=product, channel=name, begin=end - round(days * _DAY_S), end=end, seed=seed
        )
        with replacing(target) as stream:
            for device in fleet:
                stream.write(msgspec.json.encode(device) + b"\n")
                devices += 1
            if not devices:
                raise EmptyFleetError(
                    where=f"The record of {product} {name}, {days:g} days back,",
                    next_step="devices are recorded when [reports] of their device.toml names this server",
                )
    if as_json:
        print_json({"devices": devices, "file": str(target)})
    else:
        click.echo(f"Wrote {devices} devices of {product} {name} to {target}.")


@click.command(name="simulate")
@click.argument("fleet_file", metavar="FLEET", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--channel", required=True, metavar="PRODUCT/CHANNEL", help="Whose policy it is.")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The policy to try, as JSON; otherwise the one that is published.",
)
@click.option(
    "--rollout", "rollouts", multiple=True, metavar="RELEASE=PERCENT", help="Try it with this rollout; repeatable."
)
@click.option("--planned", is_flag=True, help="Let rollouts go through the stages of the product's plan.")
@click.option("--from", "begin_text", metavar="TIME", help="Begin (UTC). [default: now]")
@click.option("--days", type=click.FloatRange(min=0.01, max=366), default=7.0, show_default=True, help="How long.")
@click.option(
    "--slice",
    "slice_hours",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    metavar="HOURS",
    help="Length of a slice of time.",
)
@repository_option
@json_option
def simulate_command(
    fleet_file: Path,
    channel: str,
    policy_file: Path | None,
    rollouts: tuple[str, ...],
    planned: bool,
    begin_text: str | None,
    days: float,
    slice_hours: float,
    directory: Path,
    as_json: bool,
) -> None:
    """Replay the check-ins in FLEET against a policy before it is signed: who gets what, when, at what cost.

    Every answer is made as the device would make it. Each line of FLEET is one device; what it is, as for `overhaul
    explain`, and when it asks:

    \b
      {"facts": {"product": "kiosk", "variant": "shop", "arch": "amd64", "channel": "stable",
                 "version": "1.3.0", "build_id": "20260401.1", "rollout_id": "0b5c2f6e9d3a4c17"},
       "first": 1777593600, "every_s": 5400}
    or "times": [1777593600, 1777600000] in the place of the last two.

    \b
    Examples:
      overhaul policy simulate fleet.jsonl --channel kiosk/stable --planned
      overhaul policy simulate fleet.jsonl --channel kiosk/stable \\
          --rollout kiosk/shop/amd64/1.4.0/20260501.1=5 --json
    """
    product, name = _channel_of(channel)
    begin = int(time.time()) if begin_text is None else parse_time(begin_text)
    end = begin + round(days * _DAY_S)
    slice_s = max(1, round(slice_hours * 3600))
    if (end - begin) // slice_s > _MAX_SLICES:
        raise InputError(
            f"{days:g} days have more than {_MAX_SLICES} slices of {slice_hours:g} hours; take longer ones."
        )
    repository = open_repository(directory)
    policy = published_policy(directory, product=product, channel=name) if policy_file is None else _policy(policy_file)
    policy = _with_rollouts(policy, rollouts, now=begin)
    if planned:
        policy = as_planned(policy, _plan(repository, product), now=begin)
    releases = repository.published().releases.values()
    found = replay(
        policy, _devices(fleet_file), begin=begin, end=end, slice_s=slice_s, sizes=sizes_of(releases, product=product)
    )
    if not found.devices:
        raise EmptyFleetError(where=str(fleet_file), next_step="`overhaul policy export` writes a fleet")
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(line)


def _channel_of(text: str) -> tuple[str, str]:
    product, slash, name = text.partition("/")
    if not slash:
        raise InputError(f"{text!r} does not name a channel; write it as PRODUCT/CHANNEL.")
    return product, name


def _policy(path: Path) -> Policy:
    with path.open("rb") as stream:
        return decode_policy(stream.read(MAX_POLICY_BYTES + 1))


def _with_rollouts(policy: Policy, rollouts: tuple[str, ...], *, now: int) -> Policy:
    for text in rollouts:
        name, equals, percent_text = text.rpartition("=")
        if not equals:
            raise InputError(f"{text!r} is not a rollout; write it as RELEASE=PERCENT.")
        percent = parse_percent(percent_text)
        rollout = None if percent is None else Rollout(percent=percent)
        policy = set_rollout(policy, parse_release(name), rollout, now=now)
    return policy


def _plan(repository: Repository, product: str) -> RolloutPlan:
    plan = repository.settings.product(product).rollout
    if plan is None:
        raise InputError(f"{product} has no plan to follow; write [products.{product}.rollout] into overhaul.toml.")
    return plan


def _devices(path: Path) -> Iterator[RecordedDevice]:
    with path.open("rb") as stream:
        yield from read_fleet(stream)


def _lines(found: Replayed) -> Iterator[str]:
    yield f"{found.devices} devices, {found.check_ins} check-ins from {as_utc(found.begin)} to {as_utc(found.end)}"
    for number, text in ((found.silent, "never ask in this time"), (found.elsewhere, "follow another channel")):
        if number:
            yield f"{number} {text} and are left out."
    yield ""
    yield "Who gets what:"
    for move in found.moves or ():
        cost = "size unknown" if move.bytes_total is None else f"{human_bytes(move.bytes_total)} at most"
        back = "back " if move.goes_back else ""
        start, goal = (f"{version} ({build_id})" for version, build_id in (move.from_release, move.to_release))
        yield f"  {move.devices:>8}  {move.variant}/{move.arch}  {start} {back}to {goal}, {cost}"
    yield f"  {found.up_to_date:>8}  are up to date at the end"
    if found.due:
        yield f"  {found.due:>8}  are offered something at the end and have not asked since"
    if found.stuck:
        yield ""
        yield "Who waits at the end, and why:"
    for stuck in found.stuck[:_SHOWN]:
        yield f"  {stuck.devices:>8}  {stuck.cause.value.replace('_', ' ')}: {stuck.example}"
    if len(found.stuck) > _SHOWN:
        yield f"  and {len(found.stuck) - _SHOWN} more kinds; --json has all"
    yield ""
    yield "When (slices in which something begins):"
    for part in found.slices:
        if part.updates:
            shares = ", ".join(f"{number} have {release}" for release, number in part.exposed.items())
            yield f"  {as_utc(part.begin)}  {part.updates:>7} updates  {human_bytes(part.bytes):>9}  {shares}"
    yield ""
    yield f"In all {human_bytes(found.bytes_total)} at most."
    if found.moves_of_unknown_size:
        yield f"{found.moves_of_unknown_size} updates are not in it: their releases are not published yet."
