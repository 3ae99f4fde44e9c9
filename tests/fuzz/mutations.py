"""How valid bytes are spoilt, and how a reader is held to its promise.

`mutated` knows nothing of the format: it flips, cuts, repeats, splices and writes extreme integers. `spoilt_json`
and `spoilt_lines` know the structure, so what they make gets past the first check more often. `judged` calls the
reader and lets through only a value or the documented refusal.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from time import thread_time
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_Value = TypeVar("_Value")

#: No reader needs more for the small inputs here; far above what they take on a slow, busy machine, where a name of
#: three thousand parts in TOML takes one.
_CPU_LIMIT_S = 15.0
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63)
_EXTREME_WORDS = tuple(
    (value % (1 << 8 * size)).to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (*_EXTREMES, (1 << 64) - 1)
    for order in ("little", "big")
)
#: Deeper than any decoder recurses, so that its own bound is met and not ours.
_ABYSS = 20_000
_ABYSS_MARK = "\N{CHECKER BOARD}"


def fuzzing(examples: int) -> settings:
    """Return how the tests here run: with the same inputs each time, as `tests/conftest.py` says for all.

    `FUZZ_TIMES=50` in the environment draws new ones, and looks so much longer.
    """
    return settings(
        max_examples=examples * int(os.environ.get("FUZZ_TIMES", "1")),
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def judged(read: Callable[[], _Value], *, refusal: type[Exception] | tuple[type[Exception], ...]) -> _Value | None:
    """Return what `read` gives, or None when it refused as documented; everything else fails the test."""
    began = thread_time()
    value = refused = None
    try:
        value = read()
    except refusal as error:
        refused = str(error)
    assert thread_time() - began < _CPU_LIMIT_S
    if refused is not None:
        # It must be possible to print it: no half characters.
        assert refused.encode()
    return value


@st.composite
def mutated(draw: st.DrawFn, *samples: bytes, places: Sequence[int] = ()) -> bytes:
    """Return one of `samples`, changed; `places` are offsets where a change is most likely to be read."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 5))):
        anywhere = st.integers(0, max(0, len(data) - 1))
        place = draw(st.sampled_from(places) | anywhere if places else anywhere)
        span = draw(st.sampled_from((1, 2, 4, 8, 16, 32, 40, 64, 72)) | st.integers(0, 300))
        match draw(st.sampled_from(("flip", "byte", "word", "word", "cut", "end", "repeat", "splice", "insert"))):
            case "flip" if data:
                data[min(place, len(data) - 1)] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[min(place, len(data) - 1)] = draw(st.integers(0, 255))
            case "word":
                word = draw(st.sampled_from(_EXTREME_WORDS))
                data[place : place + len(word)] = word
            case "cut":
                del data[place : place + span]
            case "end":
                del data[place:]
            case "repeat":
                data[place:place] = data[place : place + span]
            case "splice":
                other = draw(st.sampled_from(samples))
                begin = draw(st.integers(0, len(other)))
                data[place : place + span] = other[begin : begin + span]
            case _:
                data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def outside_bytes(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Return mostly changed samples, and some bytes that have nothing to do with them."""
    return st.one_of(mutated(*samples), mutated(*samples), st.binary(max_size=400))


_HOSTILE_JSON: tuple[object, ...] = (
    None, True, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 10**4400,
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "a/../b", "a//b", "%2e%2e%2f", "a\n", "a\0b", "-x", "\ud800",
    "é" * 80, "x" * 3000, "1" * 250, "[" * 100, "*" * 120, "[a-]", "[!]", "[[a]]", "[a&&b--c||d~~e]",
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-02-30T00:00:00Z",
    [], {}, [[]], {"": None}, [None], {"format": 1}, _ABYSS_MARK,
)  # fmt: skip


@st.composite
def spoilt_value(draw: st.DrawFn, *samples: Any) -> Any:
    """Return one of the JSON values `samples` with parts replaced, removed, doubled, moved or added."""
    root = [deepcopy(draw(st.sampled_from(samples)))]
    for _ in range(draw(st.integers(1, 3))):
        holders = list(_holders(root))
        holder, key = draw(st.sampled_from(holders))
        _, other = draw(st.sampled_from(holders))
        match draw(st.sampled_from(("replace", "replace", "replace", "move", "remove", "double", "add"))):
            case "remove" if holder is not root:
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.insert(key, holder[key])
            case "move":
                holder[key] = deepcopy(draw(st.sampled_from(holders))[0])
            case "add" if isinstance(holder[key], dict):
                name = other if isinstance(other, str) else draw(st.text(max_size=5))
                holder[key][name] = deepcopy(draw(st.sampled_from(_HOSTILE_JSON)))
            case _:
                holder[key] = deepcopy(draw(st.sampled_from(_HOSTILE_JSON)))
    return root[0]


def as_json(value: Any) -> bytes:
    """Return the JSON of a spoilt value, with the abyss where it is marked."""
    text = _unlimited_json(value)
    return text.replace(f'"{_ABYSS_MARK}"', "[" * _ABYSS + "]" * _ABYSS).encode("utf-8", "surrogatepass")


def spoilt_json(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Return JSON documents that are well formed and mean something impossible, and some that are broken."""
    values = [json.loads(sample) for sample in samples]
    return st.one_of(spoilt_value(*values).map(as_json), spoilt_value(*values).map(as_json), outside_bytes(*samples))


def _unlimited_json(value: Any) -> str:
    """Write integers beyond the interpreter's limit of digits, too."""
    long: list[str] = []

    def marked(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: marked(item) for key, item in part.items()}
        if isinstance(part, list):
            return [marked(item) for item in part]
        if type(part) is int and abs(part) >= 10**4000:
            long.append("1" + "0" * 4400)
            return f"\N{SNOWMAN}{len(long) - 1}"
        return part

    text = json.dumps(marked(value), ensure_ascii=False)
    return re.sub('"\N{SNOWMAN}([0-9]+)"', lambda found: long[int(found[1])], text)


def _holders(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a value, as what holds it and the key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


_HOSTILE_TOML = (
    "", "0", "-1", "1e400", "nan", "-inf", "inf", "9" * 5000, "0x" + "f" * 5000, "true", '""', "[]", "{}",
    '"a\\u0000b"', '"\\ud800"', "2026-02-30", "2026-01-01T00:00:00Z", "07:32:00", "[" * 3000, "[" * 900 + "]" * 900,
    "{a=" * 3000,
    '"""', "'''x'''", '["a", 1, {}]', '"../.."', '"http://["', '"https://[::1"', '"s3://[/x"', '"file://host/x"',
    '"25:00-26:00"', '"02:00-02:00"', "1_0__0", "a.b.c", '"x" = 1', '"' + "x" * 3000 + '"',
)  # fmt: skip


@st.composite
def spoilt_lines(draw: st.DrawFn, sample: str) -> bytes:
    """Return the TOML text `sample` with values replaced and lines doubled, dropped or added."""
    lines = sample.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        name, assigned, _value = lines[place].partition("=")
        match draw(st.sampled_from(("value", "value", "value", "double", "drop", "table", "deep"))):
            case "value" if assigned:
                lines[place] = f"{name}= {draw(st.sampled_from(_HOSTILE_TOML))}"
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[place])
            case "drop" if len(lines) > 1:
                del lines[place]
            case "deep":
                lines.insert(place, ".".join("a" * draw(st.sampled_from((2, 600, 3000)))) + " = 1")
            case _:
                lines.insert(place, draw(st.sampled_from(("[x]", "[[slots]]", "[a.b]", "x = 1", "[", "\x00", "é"))))
    return "\n".join(lines).encode()
