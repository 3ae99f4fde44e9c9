"""`overhaul explain`: say why a device gets the answer it gets, from the very rules the device follows."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from overhaul.cli.output import json_option, print_json
from overhaul.errors import InputError
from overhaul.policy.document import MAX_POLICY_BYTES, Policy, decode_policy, policy_target_path
from overhaul.policy.facts import DeviceFacts, decode_facts
from overhaul.policy.rollout import as_utc
from overhaul.policy.selection import Decision, Hold, Offer, Reason, UpToDate, decide

#: Facts of one device are small; what is bigger is another file.
_MAX_FACTS_BYTES = 1 << 20
_HEADLINES: dict[type[Decision], str] = {Offer: "OFFER", Hold: "HOLD", UpToDate: "UP TO DATE"}


class UnreadableFileError(InputError):
    """A file named on the command line that cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be read: {reason}.")


class UnreadableTimeError(InputError):
    """A point in time that is not written in a known form."""

    def __init__(self, *, text: str) -> None:
        self.text = text
        super().__init__(
            f"{text!r} is not a time; give seconds since 1970 or a date such as 2026-05-01 or 2026-05-01T12:00Z."
        )


class NoPolicyError(InputError):
    """A channel for which the repository has published nothing yet."""

    http_status = 404

    def __init__(self, *, product: str, channel: str, known: tuple[str, ...]) -> None:
        self.product = product
        self.channel = channel
        self.known = known
        super().__init__(
            f"The repository has no policy of {product} {channel}; it has {', '.join(known) or 'none at all'}."
        )


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints: the question and the whole answer."""

    product: str
    channel: str
    revision: int
    decided_at: int
    running: tuple[str, str]
    decision: Decision


@click.command(name="explain")
@click.option(
    "--device",
    "facts_file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Facts of the device, as JSON.",
)
@click.option(
    "--repository",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="OVERHAUL_REPOSITORY",
    help="Take the channel's signed policy from this repository (also $OVERHAUL_REPOSITORY; otherwise from here).",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the policy from this file instead; nothing checks its signature.",
)
@click.option("--at", "moment", metavar="TIME", help="Decide as of this time (UTC) instead of now.")
@json_option
def command(
    facts_file: Path, directory: Path | None, policy_file: Path | None, moment: str | None, as_json: bool
) -> None:
    """Say why a device gets the answer it gets.

    The decision is made as the device itself makes it; every release for its variant and architecture is told
    with what speaks for or against it, the newest first. The exit code is 0 whatever the answer is.

    \b
    The facts are one JSON object:
      {
        "product": "kiosk", "variant": "shop", "arch": "amd64", "channel": "stable",
        "version": "1.3.0", "build_id": "20260401.1",
        "rollout_id": "0b5c2f6e9d3a4c17",
        "hardware": {"board": "rpi4", "memory_mb": "2048"},
        "refused": [["1.4.0", "20260501.1"]]
      }
    `rollout_id` decides the device's place in every rollout; `hardware` holds what is known of it, as texts;
    `refused` lists releases that failed on it. The last two may be left out.

    \b
    Examples:
      overhaul explain --device FACTS.json --repository /srv/overhaul
      overhaul explain --device FACTS.json --at 2026-05-01T12:00Z
      overhaul explain --device FACTS.json --policy stable.json --json
    """
    if policy_file is not None and directory is not None and _is_given("directory"):
        raise click.UsageError("Give --repository or --policy, not both.")
    facts = decode_facts(_read(facts_file, limit_bytes=_MAX_FACTS_BYTES))
    now = int(time.time()) if moment is None else parse_time(moment)
    policy = (
        decode_policy(_read(policy_file, limit_bytes=MAX_POLICY_BYTES))
        if policy_file is not None
        else published_policy(directory or Path(), product=facts.product, channel=facts.channel)
    )
    decision = decide(policy, facts, now)
    if as_json:
        print_json(
            Explanation(
                product=policy.product,
                channel=policy.channel,
                revision=policy.revision,
                decided_at=now,
                running=(facts.version, facts.build_id),
                decision=decision,
            )
        )
        return
    for line in lines(policy, facts, decision, now=now):
        click.echo(line)


def published_policy(directory: Path, *, product: str, channel: str) -> Policy:
    """Return the signed policy of a channel from the repository in `directory`; needs no private key."""
    from overhaul.publishing.opening import open_repository
    from overhaul.repository.signed import check_trusted

    published = open_repository(directory).published()
    check_trusted(published)
    policy = published.policies.get(policy_target_path(product, channel))
    if policy is None:
        known = sorted(f"{one.product} {one.channel}" for one in published.policies.values())
        raise NoPolicyError(product=product, channel=channel, known=tuple(known))
    return policy


def parse_time(text: str) -> int:
    """Return the Unix time of seconds since 1970 or of an ISO date; without a zone it is UTC."""
    if text.isascii() and text.isdigit():
        seconds = int(text)
    else:
        try:
            written = datetime.fromisoformat(text)
        except ValueError as error:
            raise UnreadableTimeError(text=text) from error
        aware = written if written.tzinfo is not None else written.replace(tzinfo=UTC)
        seconds = int(aware.timestamp())
    try:
        as_utc(seconds)
    except (ValueError, OverflowError, OSError) as error:
        raise UnreadableTimeError(text=text) from error
    return seconds


def lines(policy: Policy, facts: DeviceFacts, decision: Decision, *, now: int) -> list[str]:
    """Return the decision as a person reads it."""
    answer, *chain = decision.reasons
    device = f"{facts.product} {facts.variant}/{facts.arch}, channel {facts.channel}"
    told = [
        f"{_HEADLINES[type(decision)]}: {answer.text}",
        "",
        f"Device:  {device}, running {facts.version} ({facts.build_id})",
        f"Policy:  {policy.product} {policy.channel}, revision {policy.revision}, signed {as_utc(policy.signed_at)}",
        f"Decided: as of {as_utc(now)}",
    ]
    if chain:
        width = max(len(_marker(reason)) for reason in chain)
        told += ["", "Every release looked at, the newest first:"]
        told += [f"  {_marker(reason):<{width}}  {reason.text}" for reason in chain]
    return told


def _marker(reason: Reason) -> str:
    return reason.cause.value.replace("_", " ")


def _is_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


def _read(path: Path, *, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror or str(error)) from error
    if len(data) > limit_bytes:
        raise UnreadableFileError(path=path, reason=f"it is bigger than {limit_bytes} bytes")
    return data
