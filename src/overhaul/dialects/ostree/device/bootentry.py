"""Entries of the boot loader as its specification writes them, and kernel arguments.

    title Example OS 42 (ostree:0)
    version 2
    options root=LABEL=root quiet ostree=/ostree/boot.1/example/<boot checksum>/0
    linux /ostree/example-<boot checksum>/vmlinuz-6.1
    initrd /ostree/example-<boot checksum>/initramfs-6.1.img

The entry with the highest `version` is the default. File names differ between versions of OSTree and carry no
meaning here, but for the counter that systemd-boot keeps in them: `NAME+LEFT-DONE.conf`.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from overhaul.errors import DeviceError

#: Keys of which an entry may have several lines.
_ORDER = ("title", "version", "options", "linux", "initrd", "devicetree", "fdtdir", "aboot", "abootcfg")
_BOOT_LINK = re.compile(r"/ostree/boot\.([01])/([^/\s]+)/([0-9a-f]{64})/(\d+)\Z")
_LIMIT_BYTES = 1 << 16
_COUNTER = re.compile(r"\+(\d+)(?:-(\d+))?\.conf\Z")


class BootEntryError(DeviceError):
    """An entry of the boot loader that OSTree did not write like this."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The boot entry {path} cannot be used ({reason}); mend or remove it and try again.")


@dataclass(frozen=True, kw_only=True)
class BootLink:
    """Where the argument `ostree=` points: a link to a deployment."""

    boot_version: int
    osname: str
    boot_checksum: str
    #: Counts the deployments with one boot checksum.
    serial: int

    def __str__(self) -> str:
        return f"/ostree/boot.{self.boot_version}/{self.osname}/{self.boot_checksum}/{self.serial}"


def parse_boot_link(text: str) -> BootLink | None:
    """Return the link that `text` is, or None."""
    match = _BOOT_LINK.match(text)
    if match is None:
        return None
    return BootLink(boot_version=int(match[1]), osname=match[2], boot_checksum=match[3], serial=int(match[4]))


@dataclass(frozen=True, kw_only=True)
class BootEntry:
    """One entry; lines other than these keep their place in `others`."""

    title: str
    version: int
    arguments: tuple[str, ...]
    linux: str
    initrd: str = ""
    devicetree: str = ""
    fdtdir: str = ""
    others: tuple[tuple[str, str], ...] = field(default=())
    #: Attempts that systemd-boot has left for it; None: it does not count them.
    attempts_left: int | None = None
    #: The file's name without directory; empty for an entry that was not read.
    file_name: str = ""

    @property
    def boot_link(self) -> BootLink | None:
        """The deployment it starts, or None for an entry that is not OSTree's."""
        links = [word.removeprefix("ostree=") for word in self.arguments if word.startswith("ostree=")]
        return parse_boot_link(links[-1]) if links else None

    @property
    def own_arguments(self) -> tuple[str, ...]:
        """The kernel arguments without `ostree=`, which is made anew with every change."""
        return tuple(word for word in self.arguments if not word.startswith("ostree="))

    def text(self) -> str:
        """Return the file's text."""
        lines = {
            "title": self.title,
            "version": str(self.version),
            "options": " ".join(self.arguments),
            "linux": self.linux,
            "initrd": self.initrd,
            "devicetree": self.devicetree,
            "fdtdir": self.fdtdir,
        }
        pairs = [(key, lines[key]) for key in _ORDER if lines.get(key)]
        return "".join(f"{key} {value}\n" for key, value in (*pairs, *self.others))


def parse_boot_entry(text: str, *, path: Path) -> BootEntry:
    """Return the entry in `text`; `path` names it in errors, and its name may hold the counter.

    Raises:
        BootEntryError: It has no version or no kernel, or two of one key.
    """
    found: dict[str, str] = {}
    others = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if not key or key.startswith("#"):
            continue
        if key not in _ORDER or key.startswith("aboot"):
            others.append((key, value.strip()))
        elif key in found:
            raise BootEntryError(path=path, reason=f"it has two lines {key!r}")
        else:
            found[key] = value.strip()
    version = found.get("version", "")
    if not version.isdecimal() or len(version) > 9:
        raise BootEntryError(path=path, reason=f"its version is {version!r}")
    if "linux" not in found:
        raise BootEntryError(path=path, reason="it names no kernel")
    counter = _COUNTER.search(path.name)
    return BootEntry(
        title=found.get("title", ""),
        version=int(version),
        arguments=split_arguments(found.get("options", "")),
        linux=found["linux"],
        initrd=found.get("initrd", ""),
        devicetree=found.get("devicetree", ""),
        fdtdir=found.get("fdtdir", ""),
        others=tuple(others),
        attempts_left=int(counter[1]) if counter else None,
        file_name=path.name,
    )


def boot_entry_files(directory: Path) -> list[Path]:
    """Return the files of OSTree's entries in the directory `entries`; none when there is no such directory."""
    try:
        return sorted(path for path in directory.iterdir() if re.fullmatch(r"ostree-.*\.conf", path.name))
    except FileNotFoundError:
        return []


def read_boot_entry(path: Path) -> BootEntry:
    """Return the entry in a file.

    Raises:
        BootEntryError: It is none.
    """
    with path.open("rb") as stream:
        data = stream.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise BootEntryError(path=path, reason=f"it is larger than {_LIMIT_BYTES} bytes")
    try:
        return parse_boot_entry(data.decode(), path=path)
    except UnicodeDecodeError as error:
        raise BootEntryError(path=path, reason="it is no UTF-8 text") from error


def read_boot_entries(directory: Path) -> tuple[BootEntry, ...]:
    """Return OSTree's entries of the directory `entries`, the default first; none when there is no such directory."""
    return tuple(sorted(map(read_boot_entry, boot_entry_files(directory)), key=lambda entry: -entry.version))


def split_arguments(text: str) -> tuple[str, ...]:
    """Return the words of a kernel command line; double quotes keep blanks together, as the kernel reads them."""
    return tuple(re.findall(r'(?:[^\s"]|"[^"]*"?)+', text))


def with_link(entry: BootEntry, link: BootLink) -> BootEntry:
    """Return the entry that starts the deployment behind `link`."""
    return replace(entry, arguments=(*entry.own_arguments, f"ostree={link}"))
