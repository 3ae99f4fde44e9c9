"""`overhaul channel`: what channels offer, to which devices, and down to which version."""

import time
from pathlib import Path

import click

from overhaul.cli.explain import parse_time
from overhaul.cli.opening import parse_percent, parse_release, repository_option
from overhaul.cli.output import json_option, print_json
from overhaul.errors import InputError
from overhaul.policy.document import Floor, Policy
from overhaul.policy.hardware import HardwareRules, decode_predicates, facts_asked
from overhaul.policy.rollout import Rollout, RolloutStep, as_utc
from overhaul.release.names import check_name, check_token


@click.group(name="channel")
def command() -> None:
    """List channels, and set rollouts, hardware rules and floors."""


@command.command(name="list")
@click.option("--product", help="Only of this product.")
@repository_option
@json_option
def list_channels(product: str | None, directory: Path, as_json: bool) -> None:
    """List what every channel holds.

    \b
    Example:
      overhaul channel list --product kiosk
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.repository.signed import check_trusted

    repository = open_repository(directory)
    published = repository.published()
    check_trusted(published)
    held = {(policy.product, policy.channel): policy for policy in published.policies.values()}
    names = [
        (name, channel)
        for name, settings in repository.settings.products.items()
        for channel in settings.channels
        if product is None or name == product
    ]
    if as_json:
        print_json(
            [{"product": name, "channel": channel, "policy": held.get((name, channel))} for name, channel in names]
        )
        return
    for name, channel in names:
        policy = held.get((name, channel))
        click.echo(f"{name} {channel}: {'empty' if policy is None else f'revision {policy.revision}'}")
        for line in [] if policy is None else _lines(policy):
            click.echo(f"  {line}")


def _lines(policy: Policy) -> list[str]:
    lines = []
    for floor in policy.floors:
        bounds = [("support", floor.support), ("minimum", floor.minimum)]
        told = ", ".join(f"{word} {version}" for word, version in bounds if version is not None)
        lines.append(f"{floor.variant}/{floor.arch} floor: {told}")
    for entry in reversed(policy.entries):
        marks = ["checkpoint"] if entry.checkpoint else []
        if entry.rollout is not None:
            marks.append(f"{entry.rollout.percent:g} %")
            marks += [f"{step.percent:g} % from {as_utc(step.since)}" for step in entry.rollout.steps]
        if entry.hardware is not None:
            marks.append(f"hardware: by {', '.join(facts_asked(entry.hardware))}")
        if entry.recall is not None:
            marks.append(f"recalled: {entry.recall.reason}")
        lines.append(f"{entry.variant}/{entry.arch} {entry.name}{' · ' if marks else ''}{', '.join(marks)}")
    return lines


@command.command(name="rollout")
@click.argument("release")
@click.argument("percent")
@click.option("--channel", required=True, help="Channel that offers it.")
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="TIME=PERCENT",
    help="From TIME (UTC) on it is open to more; may be repeated, in order.",
)
@repository_option
@json_option
def set_rollout_percent(
    release: str, percent: str, channel: str, steps: tuple[str, ...], directory: Path, as_json: bool
) -> None:
    """Open RELEASE of a channel to PERCENT of its devices; `all` opens it to all.

    Raising the percentage only adds devices: the same ones keep it. Steps take effect by themselves, with nothing
    to sign at that time; without --step, those set before are gone.

    \b
    Examples:
      overhaul channel rollout kiosk/shop/x86_64/1.4.0/20260501.1 25 --channel stable
      overhaul channel rollout kiosk/shop/x86_64/1.4.0/20260501.1 all --channel stable
      overhaul channel rollout kiosk/shop/x86_64/1.4.0/20260501.1 1 --channel stable \\
          --step 2026-05-02T08:00Z=10 --step 2026-05-05=all
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import set_rollout

    identity = parse_release(release)
    number = parse_percent(percent)
    if number is None and steps:
        raise InputError("A release that is open to all devices has no steps; give a percentage below them.")
    rollout = None if number is None else Rollout(percent=number, steps=tuple(map(_step, steps)))
    done = set_rollout(open_repository(directory), identity, channel=channel, rollout=rollout)
    if as_json:
        print_json(done)
        return
    # A step in the past holds already; a year that was misspelt shows here.
    share = "all" if rollout is None else f"{rollout.percent_at(int(time.time())):g} %"
    click.echo(
        f"{identity} is {'' if done.changed else 'already '}open to {share} of the devices in channel {channel}."
    )
    for step in () if rollout is None else rollout.steps:
        click.echo(f"  from {as_utc(step.since)} on to {step.percent:g} %")


def _step(text: str) -> RolloutStep:
    moment, equals, percent = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} is not a step; write it as TIME=PERCENT, such as 2026-05-02T08:00Z=10.")
    number = parse_percent(percent)
    return RolloutStep(since=parse_time(moment), percent=100 if number is None else number)


@command.command(name="hardware")
@click.argument("release")
@click.option("--channel", required=True, help="Channel that offers it.")
@click.option("--allow", "allowed", multiple=True, metavar="JSON", help="A predicate; devices must meet one of these.")
@click.option("--deny", "denied", multiple=True, metavar="JSON", help="A predicate; devices must meet none of these.")
@click.option("--any", "for_any", is_flag=True, help="Offer it to any hardware again.")
@repository_option
@json_option
def set_hardware_rules(
    release: str,
    channel: str,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    for_any: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Offer RELEASE of a channel only to the hardware it is meant for.

    The rules given replace those set before. A device that does not know a fact they ask for waits. Publish with
    `--rollout 0` and open the release afterwards where no other device may see it in between.

    \b
    Examples:
      overhaul channel hardware kiosk/shop/x86_64/1.4.0/20260501.1 --channel stable \\
          --allow '{"is": "one_of", "fact": "board", "values": ["rpi4", "rpi5"]}' \\
          --deny '{"is": "version", "fact": "firmware", "below": "1.4"}'
      overhaul channel hardware kiosk/shop/x86_64/1.4.0/20260501.1 --channel stable --any
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import set_hardware

    if for_any == bool(allowed or denied):
        raise click.UsageError("Give --allow and --deny as often as needed, or --any alone.")
    identity = parse_release(release)
    rules = HardwareRules(
        allow=tuple(predicate for text in allowed for predicate in decode_predicates(text)),
        deny=tuple(predicate for text in denied for predicate in decode_predicates(text)),
    )
    done = set_hardware(open_repository(directory), identity, channel=channel, rules=rules)
    if as_json:
        print_json(done)
        return
    asked = ", ".join(facts_asked(rules))
    meant = f"hardware chosen by {asked}" if asked else "any hardware"
    click.echo(f"{identity} in channel {channel} is {'' if done.changed else 'already '}meant for {meant}.")


@command.command(name="floor")
@click.argument("channel", metavar="PRODUCT/CHANNEL")
@click.option("--variant", required=True, help="Variant the floor is for.")
@click.option("--arch", required=True, help="Architecture the floor is for.")
@click.option("--support", metavar="VERSION", help="Lowest version still supported: what its devices need is kept.")
@click.option("--minimum", metavar="VERSION", help="Lowest version that may be installed at all.")
@repository_option
@json_option
def set_floors(
    channel: str,
    variant: str,
    arch: str,
    support: str | None,
    minimum: str | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Set the lowest supported or installable version of a channel.

    \b
    Example:
      overhaul channel floor kiosk/stable --variant shop --arch x86_64 --support 1.2
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import set_floor

    product, slash, name = channel.partition("/")
    if not slash:
        raise InputError(f"{channel!r} does not name a channel; write it as PRODUCT/CHANNEL.")
    if support is None and minimum is None:
        raise click.UsageError("Give --support, --minimum or both.")
    floor = Floor(
        variant=check_name("variant", variant),
        arch=check_name("arch", arch),
        support=None if support is None else check_token("support floor", support),
        minimum=None if minimum is None else check_token("minimum version", minimum),
    )
    done = set_floor(open_repository(directory), floor, product=product, channel=name)
    if as_json:
        print_json(done)
    else:
        click.echo(f"The floor of {product} {name} for {variant}/{arch} is {'' if done.changed else 'already '}set.")
