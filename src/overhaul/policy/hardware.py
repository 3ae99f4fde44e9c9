"""Rules about hardware: which devices a release is meant for, by coarse facts the device finds out itself.

A predicate is asked of the facts and answers yes, no, or *unknown* when a fact it needs is not known (or is no
number where a number is compared). Unknown spreads as in three-valued logic: `not` of unknown is unknown, `all`
is no as soon as one part is no, `any` is yes as soon as one part is yes.

Both lists of an entry fail safe: what is unknown neither satisfies `allow` nor clears `deny`. A device that cannot
tell its firmware version therefore waits, instead of installing what may break it; who wants such devices in says
so: `{"is": "any", "of": [{"is": "absent", "fact": "firmware"}, ...]}`.

As JSON every predicate is an object whose `is` names the kind:

    {"is": "equals", "fact": "board", "value": "rpi4"}
    {"is": "one_of", "fact": "board", "values": ["rpi4", "rpi5"]}
    {"is": "glob", "fact": "model", "pattern": "X1 * Gen[67]"}          case counts; * ? [abc] as in a shell
    {"is": "version", "fact": "firmware", "at_least": "1.4", "below": "2.0"}     either bound or both
    {"is": "number", "fact": "memory_mb", "at_least": 512, "at_most": 4096}      either bound or both
    {"is": "present", "fact": "tpm"}      {"is": "absent", "fact": "tpm"}
    {"is": "all", "of": [...]}      {"is": "any", "of": [...]}      {"is": "not", "of": {...}}
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from overhaul.errors import InputError
from overhaul.policy.facts import FactName, FactValue
from overhaul.release.versions import Version

#: Bounds on a rule, so that no document can make a device think for long.
MAX_DEPTH = 8
MAX_PREDICATES = 256

_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_Values = Annotated[tuple[FactValue, ...], msgspec.Meta(min_length=1, max_length=256)]


class UnusableHardwareRuleError(InputError):
    """A hardware rule that can never be meant."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The hardware rule cannot be used: {reason}.")


class Equals(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="equals"):
    """The fact is exactly this text."""

    fact: FactName
    value: FactValue


class OneOf(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="one_of"):
    """The fact is exactly one of these texts."""

    fact: FactName
    values: _Values


class Glob(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="glob"):
    """The whole fact matches a shell pattern."""

    fact: FactName
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class VersionRange(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="version"):
    """The fact, read as a version, is at least one and below another."""

    fact: FactName
    at_least: FactValue | None = None
    below: FactValue | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.below is None:
            raise UnusableHardwareRuleError(f"the version of {self.fact} has neither `at_least` nor `below`")


class NumberRange(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="number"):
    """The fact, read as a decimal number, lies between two bounds, both included."""

    fact: FactName
    at_least: int | float | None = None
    at_most: int | float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise UnusableHardwareRuleError(f"the number {self.fact} has neither `at_least` nor `at_most`")


class Present(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="present"):
    """The fact is known."""

    fact: FactName


class Absent(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="absent"):
    """The fact is not known."""

    fact: FactName


class AllOf(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="all"):
    """Every part is met."""

    of: "Annotated[tuple[Predicate, ...], msgspec.Meta(min_length=1)]"


class AnyOf(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="any"):
    """At least one part is met."""

    of: "Annotated[tuple[Predicate, ...], msgspec.Meta(min_length=1)]"


class Not(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag="not"):
    """The part is known not to be met."""

    of: "Predicate"


Predicate = Equals | OneOf | Glob | VersionRange | NumberRange | Present | Absent | AllOf | AnyOf | Not


class HardwareRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The devices a release is meant for: those that meet any of `allow` (when given) and none of `deny`."""

    allow: tuple[Predicate, ...] = ()
    deny: tuple[Predicate, ...] = ()

    def __post_init__(self) -> None:
        if _depth(self.allow + self.deny) > MAX_DEPTH or _count(self.allow + self.deny) > MAX_PREDICATES:
            raise UnusableHardwareRuleError(
                f"it nests deeper than {MAX_DEPTH} or has more than {MAX_PREDICATES} predicates"
            )


def decode_predicates(text: str) -> tuple[Predicate, ...]:
    """Return the predicates of a JSON text: one object, or a list of them."""
    try:
        read = msgspec.json.decode(text, type=Predicate | tuple[Predicate, ...])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UnusableHardwareRuleError(f"{text!r} is not a predicate ({error})") from error
    return read if isinstance(read, tuple) else (read,)


class Verdict(Enum):
    """What the rules say of one device."""

    MEANT = "meant"
    EXCLUDED = "excluded"
    UNKNOWN = "unknown"


def judge(rules: HardwareRules | None, hardware: Mapping[str, str]) -> Verdict:
    """Return whether a release with these rules is meant for a device with these facts."""
    if rules is None:
        return Verdict.MEANT
    allowed = _any(evaluate(predicate, hardware) for predicate in rules.allow) if rules.allow else True
    denied = _any(evaluate(predicate, hardware) for predicate in rules.deny)
    if allowed is False or denied is True:
        return Verdict.EXCLUDED
    return Verdict.MEANT if allowed is True and denied is False else Verdict.UNKNOWN


def evaluate(predicate: Predicate, hardware: Mapping[str, str]) -> bool | None:
    """Return whether the facts meet `predicate`; None when that is unknown."""
    match predicate:
        case Present():
            return predicate.fact in hardware
        case Absent():
            return predicate.fact not in hardware
        case AllOf():
            return _negate(_any(_negate(evaluate(part, hardware)) for part in predicate.of))
        case AnyOf():
            return _any(evaluate(part, hardware) for part in predicate.of)
        case Not():
            return _negate(evaluate(predicate.of, hardware))
        case _:
            value = hardware.get(predicate.fact)
            return None if value is None else _matches(predicate, value)


def facts_asked(rules: HardwareRules) -> tuple[str, ...]:
    """Return the names of all facts that `rules` ask for, each once, sorted."""
    names: set[str] = set()
    waiting: list[Predicate] = [*rules.allow, *rules.deny]
    while waiting:
        predicate = waiting.pop()
        if isinstance(predicate, AllOf | AnyOf | Not):
            waiting.extend(_parts(predicate))
        else:
            names.add(predicate.fact)
    return tuple(sorted(names))


def _matches(predicate: Equals | OneOf | Glob | VersionRange | NumberRange, value: str) -> bool | None:
    match predicate:
        case Equals():
            return value == predicate.value
        case OneOf():
            return value in predicate.values
        case Glob():
            return fnmatchcase(value, predicate.pattern)
        case VersionRange():
            version = Version(value)
            high_enough = predicate.at_least is None or version >= Version(predicate.at_least)
            return high_enough and (predicate.below is None or version < Version(predicate.below))
        case NumberRange():
            number = _decimal(value)
            if number is None:
                return None
            high_enough = predicate.at_least is None or number >= predicate.at_least
            return high_enough and (predicate.at_most is None or number <= predicate.at_most)


def _decimal(value: str) -> float | None:
    return float(value) if _DECIMAL.fullmatch(value) else None


def _any(answers: Iterable[bool | None]) -> bool | None:
    known = set(answers)
    if True in known:
        return True
    return None if None in known else False


def _negate(answer: bool | None) -> bool | None:  # noqa: FBT001 - the value negated, not a switch
    return None if answer is None else not answer


def _parts(predicate: Predicate) -> tuple[Predicate, ...]:
    match predicate:
        case AllOf() | AnyOf():
            return predicate.of
        case Not():
            return (predicate.of,)
        case _:
            return ()


def _depth(predicates: tuple[Predicate, ...]) -> int:
    return 1 + max(_depth(_parts(predicate)) for predicate in predicates) if predicates else 0


def _count(predicates: tuple[Predicate, ...]) -> int:
    return sum(1 + _count(_parts(predicate)) for predicate in predicates)
