"""Variants of a file for processors with more instructions: a path may have several lines, and one is kept.

The modifier of a line says which variant it is and which ones the path has; baseline lines are `.` (or a class
letter of earlier formats). A device keeps the line of the best variant that it and the path share.
"""

from collections.abc import Iterable
from pathlib import Path

from overhaul.dialects.swupd.manifest import Entry

AVX2, AVX512, APX = 1, 2, 4
_BASELINE = 0

#: Modifier -> (the line's own variant, the variants the path has).
_TABLE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(".bsC", (_BASELINE, 0)),
    "a": (_BASELINE, 1),
    "c": (_BASELINE, 2),
    "d": (_BASELINE, 3),
    "e": (AVX2, 1),
    "f": (AVX2, 3),
    "g": (AVX512, 2),
    "h": (AVX512, 3),
    "i": (_BASELINE, 4),
    "j": (_BASELINE, 5),
    "k": (_BASELINE, 6),
    "l": (_BASELINE, 7),
    "m": (AVX2, 5),
    "n": (AVX2, 7),
    "o": (AVX512, 6),
    "p": (AVX512, 7),
    "q": (APX, 4),
    "r": (APX, 5),
    "t": (APX, 6),
    "u": (APX, 7),
}
#: Models that have AVX-512 but run better without.
_SLOW_AVX512 = frozenset({0x8C, 0x8D})


def choose(entries: Iterable[Entry], machine: int) -> tuple[Entry, ...]:
    """Return `entries` with exactly one line for each path, the best for `machine`."""
    # Nearly all lines of all manifests are baseline.
    kept = []
    for entry in entries:
        modifier = entry.modifier
        if modifier == "." or entry.status != ".":
            kept.append(entry)
            continue
        known = _TABLE.get(modifier)
        if known is None:
            continue
        own, existing = known
        shared = existing & machine
        best = 1 << (shared.bit_length() - 1) if shared else _BASELINE
        if own == best:
            kept.append(entry)
    return tuple(kept)


def machine_level(root: Path, processor: Path = Path("/proc/cpuinfo")) -> int:
    """Return the variants that this machine runs; only a system at `/` is known to run on it."""
    if str(root) != "/":
        return _BASELINE
    try:
        text = processor.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return _BASELINE
    facts = {name.strip(): value.strip() for name, _colon, value in (line.partition(":") for line in text.splitlines())}
    flags = frozenset(facts.get("flags", "").split())
    if not {"avx2", "fma"} <= flags:
        return _BASELINE
    model = facts.get("model", "0")
    is_slow = facts.get("cpu family") == "6" and model.isdecimal() and int(model) in _SLOW_AVX512
    level = AVX2 if "avx512vl" not in flags or is_slow else AVX2 | AVX512
    if level & AVX512 and (root / "etc/clear/elf-replace-avx512").exists():
        level = AVX2
    if level == AVX2 and (root / "etc/clear/elf-replace-avx2").exists():
        level = _BASELINE
    return level
