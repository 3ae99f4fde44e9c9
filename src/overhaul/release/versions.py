"""The order of releases: which version is newer, decided for every text that may name one.

Reading a version never fails, so that one strange name cannot stop a fleet. A text is read as the first of these
that fits; what stands higher is older:

    snapshot    `snapshot` in any case: a build without a version. All are equal as versions and are told apart
                by their build ids.
    named       begins with a letter (`bookworm`, `r23809-234f1a2`): Debian's order of the whole text, in which
                runs of digits count as numbers.
    numbered    numbers divided by dots, then an optional pre-release, then an optional suffix:

                    3.7.1-rc.2+deb12u1        a `v` before the first digit is ignored (`v3.7`)
                    |     |   suffix: begins at the first `+` or `~`, in Debian's order: `1.0~x` < `1.0` < `1.0+x`
                    |     pre-release: all text between, in Semantic Versioning's order; older than none at all
                    numbers: missing ones are 0, so `3`, `3.0` and `03.0.0` are equal; any count is allowed

A first number that reads as a calendar date (`20240501`, `2024-05-01`) counts as year, month and day, and a number
after it as a fourth: `20240501` equals `2024.05.01`, and `20240501.3` and `20240501-3` follow both.

Versions in Semantic Versioning have exactly its precedence; the order refines it only where the standard declares
a tie, by build metadata. Text glued to the numbers is a pre-release as well: `4.2rc1` means `4.2-rc1`, and who
means a later `1.1.1w` writes `1.1.1+w`.

Snapshots are older than everything with a version. Other systems compare a snapshot and a version by their build
ids alone, but that is no order: of `1.0 (b3)`, `2.0 (b1)` and `snapshot (b2)` each is then newer than another.
Below everything is the choice that lets a device leave development builds and never takes it back to them.
"""

import re
from functools import lru_cache, total_ordering

#: A number of any length that orders by value: how many digits, then the digits.
_Number = tuple[int, str]
#: Debian's order of a text: pairs of a run of other characters and a number.
_DebianKey = tuple[tuple[tuple[int, ...], _Number], ...]
#: One dot-separated part of a pre-release: numbers before words.
_Identifier = tuple[int, _Number, str]
#: Kind, numbers, whether it is a final release, the pre-release, the suffix or the whole text.
_Key = tuple[int, tuple[_Number, ...], bool, tuple[_Identifier, ...], _DebianKey]

_SNAPSHOT, _NAMED, _NUMBERED = range(3)
_ZERO: _Number = (0, "")
_END = ((0,), _ZERO)

_DATE = re.compile(
    r"(?P<year>[12][0-9]{3})(?P<dash>-?)(?P<month>0[1-9]|1[0-2])(?P=dash)(?P<day>0[1-9]|[12][0-9]|3[01])(?![0-9])"
    r"(?:-(?P<counter>[0-9]+)(?![0-9A-Za-z_]))?"
)
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_MORE_NUMBERS = re.compile(r"(?:\.[0-9]+)*")
_SUFFIX = re.compile(r"[+~]")
_RUNS = re.compile(r"([^0-9]*)([0-9]*)")


@total_ordering
class Version:
    """A version or build id with its place in the order; equal places are equal versions, however written."""

    __slots__ = ("_key", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._key = _key_of(text)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Version) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._key < other._key if isinstance(other, Version) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Version({self.text!r})"

    @property
    def is_snapshot(self) -> bool:
        """Whether this names a build without a version."""
        return self._key[0] == _SNAPSHOT


#: The place of a release among those of its product, variant and arch: by version, then by build id.
ReleaseOrder = tuple[Version, Version]


@lru_cache(maxsize=8192)
def release_order_key(version: str, build_id: str) -> ReleaseOrder:
    """Return what releases are sorted by; releases with equal keys cannot stand in one channel."""
    return Version(version), Version(build_id)


def _key_of(text: str) -> _Key:
    if text.lower() == "snapshot":
        return _SNAPSHOT, (), True, (), ()
    body = text[1:] if re.match(r"[vV][0-9]", text) else text
    date = _DATE.match(body)
    if date is not None:
        more = _MORE_NUMBERS.match(body, date.end())
        written = [date["year"], date["month"], date["day"], *([date["counter"]] if date["counter"] else [])]
    else:
        more = _NUMBERS.match(body)
        written = []
    if more is None:
        return _NAMED, (), True, (), _debian_key(text)
    written += [digits for digits in more[0].split(".") if digits]
    rest = body[more.end() :]
    suffix = _SUFFIX.search(rest)
    prerelease, tail = (rest[: suffix.start()], rest[suffix.start() :]) if suffix else (rest, "")
    return _NUMBERED, _without_zeros(written), not prerelease, _prerelease_key(prerelease), _debian_key(tail)


def _number(digits: str) -> _Number:
    significant = digits.lstrip("0")
    return len(significant), significant


def _without_zeros(written: list[str]) -> tuple[_Number, ...]:
    numbers = [_number(digits) for digits in written]
    while numbers and numbers[-1] == _ZERO:
        numbers.pop()
    return tuple(numbers)


def _prerelease_key(text: str) -> tuple[_Identifier, ...]:
    """Semantic Versioning 2.0, section 11.4, without the divider that stands before the pre-release."""
    if not text:
        return ()
    bare = text[1:] if text[0] in "-._" else text
    return tuple(
        (0, _number(part), "") if re.fullmatch(r"[0-9]+", part) else (1, _ZERO, part) for part in bare.split(".")
    )


def _debian_key(text: str) -> _DebianKey:
    """The order of `deb-version(7)` as a key; the end mark stands above `~` and below everything else."""
    pairs = [
        ((*(_debian_rank(character) for character in other), 0), _number(digits))
        for other, digits in _RUNS.findall(text)
        if other or digits
    ]
    while pairs and pairs[-1] == _END:
        pairs.pop()
    return (*pairs, _END)


def _debian_rank(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 0x110000
