"""Boot Loader Specification entries of slots: their names, their text, and the order systemd-boot takes them in.

```
loader/entries/overhaul-A.conf          good: no counter
loader/entries/overhaul-B+3.conf        on trial, three attempts left
loader/entries/overhaul-B+2-1.conf      the same after the loader has started it once: it renames the file
loader/entries/overhaul-B+0-3.conf      used up: taken only when there is nothing else
```

The first byte of an entry says whether it counts. Behind a line feed it is *live*; behind a `#` its first line, which
names the kernel, is a comment, and an entry without a kernel is passed over: it is *inert*. So one byte, and with it
one sector of the medium, decides, however long the entry is and whatever else of it reached the medium before.

```
⏎linux /overhaul/B/linux
version 00000007                        the entry with the highest number is the first choice
sort-key overhaul
title Overhaul, slot B
initrd /overhaul/B/initrd
options root=PARTLABEL=root-B ro panic=10 overhaul.slot=B
```

Format: Boot Loader Specification (UAPI group); order of entries: systemd-boot(7). The number has always the same
width, so that changing it touches nothing else; systemd-boot skips leading zeros.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from overhaul.errors import InputError

#: What `default` in loader.conf must say: systemd-boot takes the first entry in its order that matches.
DEFAULT_PATTERN = "overhaul-*"
LIVE, INERT = b"\n", b"#"
_NAME = re.compile(r"overhaul-([A-Za-z][A-Za-z0-9]{0,15})(?:\+([0-9]{1,9})(?:-([0-9]{1,9}))?)?\.conf")
_VERSION = re.compile(rb"^version ([0-9]{8})$", re.MULTILINE)
_VERSION_MAX = 99_999_999


class UnusableOptionsError(InputError):
    """A kernel command line that does not fit into an entry."""

    def __init__(self, *, options: str) -> None:
        self.options = options
        super().__init__(
            f"The kernel options {options!r} cannot stand in a boot entry; write them in one line without line breaks."
        )


@dataclass(frozen=True, kw_only=True)
class EntryName:
    """A file name of an entry; `left` is None when the loader does not count."""

    slot: str
    left: int | None = None
    done: int = 0

    def __str__(self) -> str:
        counter = "" if self.left is None else f"+{self.left}" + (f"-{self.done}" if self.done else "")
        return f"overhaul-{self.slot}{counter}.conf"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry as it lies on the boot partition; `file` is its name there."""

    file: str
    name: EntryName
    text: bytes

    @property
    def is_live(self) -> bool:
        """Whether the loader would take the entry for one; a live one begins with the line that names the kernel."""
        return self.text.startswith(LIVE + b"linux ")

    @property
    def version(self) -> int:
        """The entry's place in the order."""
        found = _VERSION.search(self.text)
        return 0 if found is None else int(found[1])


def parse_name(file: str) -> EntryName | None:
    """Return what a file name says, or None when it is not of ours."""
    found = _NAME.fullmatch(file)
    if found is None:
        return None
    return EntryName(slot=found[1], left=None if found[2] is None else int(found[2]), done=int(found[3] or 0))


def render_entry(slot: str, *, version: int, options: str, has_initrd: bool) -> bytes:
    """Return the text of a live entry; `{slot}` in `options` is the slot's name."""
    line = f"{options.replace('{slot}', slot)} overhaul.slot={slot}".strip()
    if not line.isprintable():
        raise UnusableOptionsError(options=options)
    initrd = f"initrd /{kernel_directory(slot)}/initrd\n" if has_initrd else ""
    text = f"linux /{kernel_directory(slot)}/linux\nversion 00000000\nsort-key overhaul\n"
    text += f"title Overhaul, slot {slot}\n{initrd}options {line}\n"
    return with_version(LIVE + text.encode(), version)


def kernel_directory(slot: str) -> str:
    """Return where the kernel of a slot lies on the boot partition."""
    return f"overhaul/{slot}"


def with_version(text: bytes, version: int) -> bytes:
    """Return the entry's text with another place in the order."""
    # One number for each update: at one a minute this lasts for 190 years.
    return _VERSION.sub(b"version %08d" % min(version, _VERSION_MAX), text, count=1)


def inert(text: bytes) -> bytes:
    """Return the text that differs in its first byte and does not count."""
    return INERT + text[1:]


def in_loader_order(entries: Iterable[Entry]) -> list[Entry]:
    """Return the live ones of `entries`, the loader's first choice first.

    Used-up ones come last; then the highest number counts, then the name. Of one slot's two entries with the same
    number systemd-boot may take either: one confirms what the other tried.
    """
    by_name = sorted((entry for entry in entries if entry.is_live), key=lambda entry: entry.name.slot, reverse=True)
    return sorted(by_name, key=lambda entry: (entry.name.left == 0, -entry.version, entry.name.left is not None))
