"""What a policy would do to a fleet: check-ins as they were recorded, decided as each device would decide them.

Every answer comes from `policy.selection.decide` itself. A decision depends on the device's facts, on the policy,
and on the moment and the device's random place only through one thing: which rollouts are open to it then. So
devices that are alike in facts and open rollouts get one decision, which is made once; the reasons then hold the
place of the device it was made for, and everything else is the same for all.

A device that is offered a release runs it at its next check-in. Nobody fails and nobody refuses: this says what a
policy intends, not what a release does.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, NamedTuple

import msgspec

from overhaul.errors import InputError
from overhaul.policy.document import Policy, PolicyEntry, VersionAndBuild
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.rollout import UnixTime, admits, bucket
from overhaul.policy.selection import Cause, Decision, Offer, UpToDate, decide, rollout_seed

#: A device asks no more often than this, or one line would make a replay without an end.
MIN_INTERVAL_S = 60
_NEVER = 1 << 62
_ALWAYS = -1


class UnreadableFleetError(InputError):
    """A line that should hold a device and its check-ins and does not."""

    def __init__(self, *, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(
            f"Line {line} of the recorded check-ins cannot be read ({reason}); `overhaul policy simulate --help` "
            "shows an example."
        )


class RecordedDevice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device and when it asked: at these times, or every so often from a first time on."""

    facts: DeviceFacts
    times: tuple[UnixTime, ...] = ()
    first: UnixTime | None = None
    every_s: Annotated[int, msgspec.Meta(ge=MIN_INTERVAL_S)] | None = None

    def __post_init__(self) -> None:
        if (self.first is None) != (self.every_s is None) or (self.first is None) == (not self.times):
            raise ValueError("give its check-ins as `times`, or as `first` and `every_s`")
        if list(self.times) != sorted(self.times):
            raise ValueError("its `times` must rise")

    def check_at_or_after(self, moment: int) -> int | None:
        """Return the time of the first check-in that is not before `moment`."""
        if self.first is not None and self.every_s is not None:
            return self.first + max(0, -(-(moment - self.first) // self.every_s)) * self.every_s
        place = bisect_left(self.times, moment)
        return self.times[place] if place < len(self.times) else None

    def checks_before(self, moment: int) -> int:
        """Return how many check-ins there are before `moment`."""
        if self.first is not None and self.every_s is not None:
            return max(0, -(-(moment - self.first) // self.every_s))
        return bisect_left(self.times, moment)


def read_fleet(lines: Iterable[bytes]) -> Iterator[RecordedDevice]:
    """Yield the device of each line, one JSON object a line; raise `UnreadableFleetError` where there is none."""
    decoder = msgspec.json.Decoder(RecordedDevice)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UnreadableFleetError(line=number, reason=str(error)) from error


class Decider:
    """Decides for one policy after another device, each kind of question once."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entries: dict[tuple[str, str], tuple[PolicyEntry, ...]] = {}
        self._decisions: dict[tuple[object, ...], Decision] = {}

    @property
    def decisions(self) -> int:
        """How many different questions were decided so far."""
        return len(self._decisions)

    def openings(self, facts: DeviceFacts) -> tuple[int, ...]:
        """Return, for every release with a rollout, since when it is open to the device: a time, always or never."""
        return tuple(self._opening(entry, facts) for entry in self._rollouts(facts))

    def decide(self, facts: DeviceFacts, openings: Sequence[int], now: int) -> Decision:
        """Return what `policy.selection.decide` says, but for the device's place in the texts of its reasons."""
        admitted = tuple(opening <= now for opening in openings)
        question = (
            *(facts.product, facts.channel, facts.variant, facts.arch, facts.version, facts.build_id),
            *(facts.minimum, frozenset(facts.refused), frozenset(facts.hardware.items()), admitted),
        )
        known = self._decisions.get(question)
        if known is None:
            known = self._decisions[question] = decide(self._policy, facts, now)
        return known

    def _rollouts(self, facts: DeviceFacts) -> tuple[PolicyEntry, ...]:
        key = (facts.variant, facts.arch)
        if key not in self._entries:
            entries = self._policy.entries_for(variant=facts.variant, arch=facts.arch)
            self._entries[key] = tuple(entry for entry in entries if entry.rollout is not None)
        return self._entries[key]

    def _opening(self, entry: PolicyEntry, facts: DeviceFacts) -> int:
        rollout = entry.rollout
        if rollout is None:
            return _ALWAYS
        place = bucket(rollout_id=facts.rollout_id, seed=rollout_seed(self._policy.product, entry))
        if admits(percent=rollout.percent, place=place):
            return _ALWAYS
        opens_at = rollout.opens_at(place)
        return _NEVER if opens_at is None else opens_at


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that go from one release to another."""

    from_release: VersionAndBuild
    to_release: VersionAndBuild
    variant: str
    arch: str
    devices: int
    #: What each of them fetches, and all together; None when it is not known.
    bytes_each: int | None
    bytes_total: int | None
    goes_back: bool


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What happens in one slice of time."""

    begin: int
    check_ins: int
    #: Devices that began an update in it.
    updates: int
    bytes: int
    #: Release, as `variant/arch version (build)`, to the devices that were offered it up to the end of the slice.
    exposed: dict[str, int]


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that wait at the end, for one cause."""

    cause: Cause
    running: VersionAndBuild
    #: The first release they wait for, when there is one.
    release: VersionAndBuild | None
    variant: str
    arch: str
    devices: int
    #: The words of one of them.
    example: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy does to a fleet."""

    begin: int
    end: int
    devices: int
    #: Devices that never asked in this time, and those that follow another channel.
    silent: int
    elsewhere: int
    check_ins: int
    #: Different questions that were decided.
    decisions: int
    up_to_date: int
    #: Devices that are offered something and have not asked since.
    due: int
    slices: tuple[Slice, ...]
    moves: tuple[Move, ...]
    stuck: tuple[Stuck, ...]
    bytes_total: int
    #: Moves whose size is not known, and therefore not in the total.
    moves_of_unknown_size: int


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One device begins to move."""

    at: int
    offer: Offer


class _Way(NamedTuple):
    """A move that devices make in one slice."""

    variant: str
    arch: str
    from_release: VersionAndBuild
    to_release: VersionAndBuild
    goes_back: bool
    number: int


@dataclass
class _Sums:
    """What is counted while devices go by."""

    begin: int
    end: int
    slice_s: int
    #: Check-ins before each edge of a slice, of devices that have none in common with others.
    before: list[int] = field(default_factory=list)
    #: Interval -> time after `begin` of the first check-in, of each device that asks in this interval all the time.
    periodic: dict[int, list[int]] = field(default_factory=dict)
    moves: Counter["_Way"] = field(default_factory=Counter)
    #: A `Stuck` without its count and words -> how many.
    stuck: Counter[Stuck] = field(default_factory=Counter)
    examples: dict[Stuck, str] = field(default_factory=dict)
    up_to_date: int = 0
    due: int = 0
    elsewhere: int = 0
    silent: int = 0
    devices: int = 0

    def __post_init__(self) -> None:
        self.before = [0] * len(self.edges)

    @property
    def slices(self) -> int:
        """How many slices there are; the last may be shorter."""
        return -(-(self.end - self.begin) // self.slice_s)

    @cached_property
    def edges(self) -> list[int]:
        """The begin of every slice, and the end of the last."""
        return [min(self.end, self.begin + number * self.slice_s) for number in range(self.slices + 1)]

    def count_checks(self, device: RecordedDevice) -> int:
        """Count a device's check-ins in every slice; return how many there are in all."""
        every_s = device.every_s
        if every_s is not None and device.first is not None and device.first <= self.begin:
            self.periodic.setdefault(every_s, []).append(-(self.begin - device.first) % every_s)
        else:
            for number, edge in enumerate(self.edges):
                self.before[number] += device.checks_before(edge)
        return device.checks_before(self.end) - device.checks_before(self.begin)

    def checks_by_slice(self) -> list[int]:
        """Return the check-ins in each slice."""
        before = list(self.before)
        for every_s, phases in self.periodic.items():
            phases.sort()
            for number, edge in enumerate(self.edges):
                whole, rest = divmod(edge - self.begin, every_s)
                before[number] += whole * len(phases) + bisect_left(phases, rest)
        return [after - earlier for earlier, after in itertools.pairwise(before)]


#: Bytes a device of (variant, arch) fetches to get from one release to another; None when that is not known.
Sizes = Callable[[str, str, VersionAndBuild, VersionAndBuild], int | None]


def replay(
    policy: Policy, fleet: Iterable[RecordedDevice], *, begin: int, end: int, slice_s: int, sizes: Sizes
) -> Replayed:
    """Return what `policy` does to `fleet` from `begin` up to `end`, in slices of `slice_s` seconds."""
    decider = Decider(policy)
    sums = _Sums(begin=begin, end=end, slice_s=slice_s)
    for device in fleet:
        _replay_device(decider, device, sums, policy)
    return _summed(sums, sizes, decisions=decider.decisions)


def steps_of(
    decider: Decider, device: RecordedDevice, openings: Sequence[int], *, begin: int, end: int
) -> Iterator[_Step]:
    """Yield the moves of one device, in the order of time."""
    facts = device.facts
    # Between two of these moments nothing changes for the device by itself.
    moments = [begin, *sorted(moment for moment in set(openings) if begin < moment < end), end]
    for moment, following in itertools.pairwise(moments):
        at = device.check_at_or_after(moment)
        while at is not None and at < following:
            decision = decider.decide(facts, openings, at)
            if not isinstance(decision, Offer):
                break
            yield _Step(at=at, offer=decision)
            facts = running_now(facts, decision.entry)
            at = device.check_at_or_after(at + 1)


def _replay_device(decider: Decider, device: RecordedDevice, sums: _Sums, policy: Policy) -> None:
    sums.devices += 1
    if (device.facts.product, device.facts.channel) != (policy.product, policy.channel):
        sums.elsewhere += 1
        return
    if not sums.count_checks(device):
        sums.silent += 1
        return
    facts, openings = device.facts, decider.openings(device.facts)
    for step in steps_of(decider, device, openings, begin=sums.begin, end=sums.end):
        entry, running = step.offer.entry, (facts.version, facts.build_id)
        facts = running_now(facts, entry)
        sums.moves[
            _Way(
                variant=entry.variant,
                arch=entry.arch,
                from_release=running,
                to_release=(entry.version, entry.build_id),
                goes_back=step.offer.goes_back,
                number=(step.at - sums.begin) // sums.slice_s,
            )
        ] += 1
    _count_end(sums, facts, decider.decide(facts, openings, sums.end - 1))


def running_now(facts: DeviceFacts, entry: PolicyEntry) -> DeviceFacts:
    """Return the facts of a device that has moved to `entry`."""
    return msgspec.structs.replace(facts, version=entry.version, build_id=entry.build_id)


def _count_end(sums: _Sums, facts: DeviceFacts, decision: Decision) -> None:
    if isinstance(decision, UpToDate):
        sums.up_to_date += 1
    elif isinstance(decision, Offer):
        sums.due += 1
    else:
        held, *chain = decision.reasons
        cause = next((reason.cause for reason in chain if reason.release in {held.release, None}), held.cause)
        kind = Stuck(
            cause=cause,
            running=(facts.version, facts.build_id),
            release=held.release,
            variant=facts.variant,
            arch=facts.arch,
            devices=0,
            example="",
        )
        sums.stuck[kind] += 1
        sums.examples.setdefault(kind, held.text)


def _summed(sums: _Sums, sizes: Sizes, *, decisions: int) -> Replayed:
    each = {way: sizes(way.variant, way.arch, way.from_release, way.to_release) for way in sums.moves}
    checks = sums.checks_by_slice()
    return Replayed(
        begin=sums.begin,
        end=sums.end,
        devices=sums.devices,
        silent=sums.silent,
        elsewhere=sums.elsewhere,
        check_ins=sum(checks),
        decisions=decisions,
        up_to_date=sums.up_to_date,
        due=sums.due,
        slices=tuple(_slices(sums, checks, each)),
        moves=tuple(_moves(sums, each)),
        stuck=tuple(
            msgspec.structs.replace(kind, devices=number, example=sums.examples[kind])
            for kind, number in sums.stuck.most_common()
        ),
        bytes_total=sum((each[way] or 0) * number for way, number in sums.moves.items()),
        moves_of_unknown_size=sum(number for way, number in sums.moves.items() if each[way] is None),
    )


def _slices(sums: _Sums, checks: list[int], each: dict[_Way, int | None]) -> Iterator[Slice]:
    by_slice: dict[int, list[tuple[_Way, int]]] = {}
    for way, number in sums.moves.items():
        by_slice.setdefault(way.number, []).append((way, number))
    exposed: Counter[str] = Counter()
    for place, (begin, check_ins) in enumerate(zip(sums.edges, checks, strict=False)):
        moved = by_slice.get(place, [])
        for way, number in moved:
            version, build_id = way.to_release
            exposed[f"{way.variant}/{way.arch} {version} ({build_id})"] += number
        yield Slice(
            begin=begin,
            check_ins=check_ins,
            updates=sum(number for _way, number in moved),
            bytes=sum((each[way] or 0) * number for way, number in moved),
            exposed=dict(sorted(exposed.items())),
        )


def _moves(sums: _Sums, each: dict[_Way, int | None]) -> Iterator[Move]:
    totals: Counter[_Way] = Counter()
    for way, number in sums.moves.items():
        totals[way._replace(number=0)] += number
    known = {way._replace(number=0): size for way, size in each.items()}
    for way, number in totals.most_common():
        size = known[way]
        yield Move(
            from_release=way.from_release,
            to_release=way.to_release,
            variant=way.variant,
            arch=way.arch,
            devices=number,
            bytes_each=size,
            bytes_total=None if size is None else size * number,
            goes_back=way.goes_back,
        )
