"""Merging files of accounts, whose lines are records with a name: passwd, group, shadow and their like.

A new system user is nearly always appended, by the owner as by the release, so that by lines every such pair of changes
would be a conflict. Here each record is merged by its name; the owner's order stays, and what the release adds comes
at the end. A record that both sides changed differently, or a number that two records would share, is a conflict.
"""

#: Paths relative to /etc, and whether the third field is a number that belongs to one name.
_FILES = {
    b"passwd": True,
    b"group": True,
    b"shadow": False,
    b"gshadow": False,
    b"subuid": False,
    b"subgid": False,
}


def is_account_file(path: bytes) -> bool:
    """Tell whether `path`, relative to /etc, holds records with names."""
    return path in _FILES


def merge_accounts(path: bytes, base: bytes, mine: bytes, theirs: bytes) -> bytes | None:
    """Return the records with the changes of both sides, or None where they conflict or are no such records."""
    versions = [_records(text) for text in (base, mine, theirs)]
    old, ours, new = versions
    if old is None or ours is None or new is None:
        return None
    merged: dict[bytes, bytes] = {}
    for name in (*ours, *(name for name in new if name not in ours)):
        before, here, there = old.get(name), ours.get(name), new.get(name)
        if here == before:
            chosen = there
        elif there in (before, here):
            chosen = here
        else:
            return None
        if chosen is not None:
            merged[name] = chosen
    if _FILES[path] and _shares_numbers(merged) and not _shares_numbers(ours):
        return None
    return b"".join(line + b"\n" for line in merged.values())


def _records(text: bytes) -> dict[bytes, bytes] | None:
    found: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        name, separator, _rest = line.partition(b":")
        if not line:
            continue
        if not separator or name in found:
            return None
        found[name] = line
    return found


def _shares_numbers(records: dict[bytes, bytes]) -> bool:
    numbers = [fields[2] for line in records.values() if len(fields := line.split(b":")) > 2]
    return len(numbers) != len(set(numbers))
