"""What must be true of a device before an image is offered to it: hardware, somebody watching, its place in a rollout.

    [Overhaul.Rule.firmware-bug]
    Images = 3.7.1 20240115.* 3.8.0/20240301.1    versions, build ids, or both; shell patterns
    Branches = stable                              absent: every branch
    NotHardware = board=Jupiter; model=X1 * Gen7   stop it for these
    OnlyHardware = board=Galileo                   allow it for these alone
    UnknownHardware = hold                         or offer: to devices that do not say what they are
    AttendedOnly = yes                             only where a person watches
    Percent = 25                                   of the devices

An image that a device may not have is to this device as if it were not in the pool, so it is offered what it would
have been offered before, and never jumps over a checkpoint it may not have. Static files cannot ask, so an image with
any requirement that is not open to everybody is in none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from overhaul.dialects.atomupd.configuration import IniFile
from overhaul.dialects.atomupd.manifest import Image
from overhaul.errors import InputError
from overhaul.policy.hardware import Absent, AllOf, AnyOf, Glob, HardwareRules, Not, Predicate, Verdict, judge
from overhaul.policy.rollout import Rollout, admits, bucket

_OPTIONS = (
    "Images",
    "Branches",
    "OnlyHardware",
    "NotHardware",
    "UnknownHardware",
    "AttendedOnly",
    "Percent",
)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """What a device tells about itself beside the image it runs; all of it may be absent."""

    hardware: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Whether a person started the update and watches it.
    is_attended: bool = False
    #: What its place in rollouts is drawn from; empty where that is unknown, and then it waits for the end of each.
    rollout_id: str = ""


#: Who tells nothing; all clients of the past.
UNKNOWN_ASKER = Asker()


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One rule, and the images it holds for."""

    name: str
    #: Shell patterns of versions, build ids, or VERSION/BUILDID.
    images: tuple[str, ...]
    branches: tuple[str, ...] = ()
    #: Set where the rule is about one variant and architecture only.
    variant: str = ""
    arch: str = ""
    hardware: HardwareRules | None = None
    attended_only: bool = False
    rollout: Rollout | None = None

    def holds_for(self, image: Image) -> bool:
        """Whether `image` is one of those the rule is about."""
        if self.branches and image.branch not in self.branches:
            return False
        if (self.variant and image.variant != self.variant) or (self.arch and image.arch != self.arch):
            return False
        version, build_id = image.version.text, str(image.build_id)
        names = (version, build_id, f"{version}/{build_id}")
        return any(fnmatchcase(name, pattern) for pattern in self.images for name in names)

    def is_open_to_everybody(self, now: int) -> bool:
        """Whether it asks nothing of anybody at the Unix time `now`."""
        return (
            self.hardware is None
            and not self.attended_only
            and (self.rollout is None or self.rollout.percent_at(now) >= 100)
        )

    def is_met(self, asker: Asker, image: Image, *, now: int) -> bool:
        """Whether `image` may be offered to `asker` at the Unix time `now`."""
        if self.attended_only and not asker.is_attended:
            return False
        if judge(self.hardware, asker.hardware) is not Verdict.MEANT:
            return False
        if self.rollout is None:
            return True
        percent = self.rollout.percent_at(now)
        if percent >= 100 or not asker.rollout_id:
            return percent >= 100
        seed = self.rollout.seed or f"{image.product}/{image.variant}/{image.arch} {image.version} ({image.build_id})"
        return admits(percent=percent, place=bucket(rollout_id=asker.rollout_id, seed=seed))


def parse_requirement(ini: IniFile, section: str, name: str) -> Requirement:
    """Return the rule of one section.

    Raises:
        UnusableConfigurationError: It can never be meant.
    """
    ini.check_known(section, _OPTIONS)
    ini.needed(section, "Images")
    unknown = ini.text(section, "UnknownHardware") or "hold"
    if unknown not in {"hold", "offer"}:
        raise ini.refusal(f"[{section}] UnknownHardware is {unknown!r}, not hold or offer")
    only = [_glob(ini, section, part) for part in ini.parts(section, "OnlyHardware")]
    never = [_glob(ini, section, part) for part in ini.parts(section, "NotHardware")]
    percent = ini.number(section, "Percent", default=100, lowest=0, highest=100)
    try:
        hardware = _rules(only, never, offers_unknown=unknown == "offer")
    except InputError as error:
        raise ini.refusal(f"[{section}]: {error}".rstrip(".")) from error
    return Requirement(
        name=name,
        images=ini.words(section, "Images"),
        branches=ini.words(section, "Branches"),
        hardware=hardware,
        attended_only=ini.truth(section, "AttendedOnly", default=False),
        rollout=Rollout(percent=percent) if percent < 100 else None,
    )


def _glob(ini: IniFile, section: str, part: str) -> Glob:
    fact, equals, pattern = part.partition("=")
    if not equals or not fact.strip() or not pattern.strip():
        raise ini.refusal(f"[{section}] has {part!r}, which is not FACT=PATTERN")
    return Glob(fact=fact.strip().lower(), pattern=pattern.strip())


def _rules(only: list[Glob], never: list[Glob], *, offers_unknown: bool) -> HardwareRules | None:
    if not only and not never:
        return None
    allow: list[Predicate] = list(only)
    deny: list[Predicate] = list(never)
    if offers_unknown:
        # Absent facts clear a refusal, and satisfy a list when none of its facts is known.
        deny = [_known_and(glob) for glob in never]
        allow += [AllOf(of=tuple(Absent(fact=fact) for fact in sorted({glob.fact for glob in only})))] if only else []
        allow = [_known_and(one) if isinstance(one, Glob) else one for one in allow]
    return HardwareRules(allow=tuple(allow), deny=tuple(deny))


def _known_and(glob: Glob) -> Predicate:
    return AllOf(of=(Not(of=AnyOf(of=(Absent(fact=glob.fact),))), glob))
