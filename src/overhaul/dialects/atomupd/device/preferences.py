"""What the owner chose through the daemon, and what the server says can be chosen.

preferences.conf      [Choices] Variant, Branch   [Proxy] Address, Port      written by the daemon, survives updates
remote-info.conf      [Server] Variants, Branches, BranchesDev               fetched from the server
steamos-branch        one word, of clients of the past; taken over once
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.atomupd.configuration import IniFile
from overhaul.dialects.atomupd.manifest import LEGACY_VARIANT, STABLE_BRANCH, Image, split_legacy_variant
from overhaul.errors import InputError
from overhaul.host.files import replace_bytes

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LEGACY_BRANCHES = {"rel": STABLE_BRANCH, **{name: name for name in ("rc", "beta", "bc", "main", "staging")}}
_MAX_PORT = 65535


class UnknownChoiceError(InputError):
    """A variant or branch that is not offered."""

    def __init__(self, *, kind: str, name: str, known: Sequence[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        super().__init__(f"There is no {kind} {name!r}; choose one of {', '.join(known)}.")


class UnusableProxyError(InputError):
    """A proxy that is none."""

    def __init__(self, *, address: str, port: int) -> None:
        self.address = address
        self.port = port
        super().__init__(f"{address!r} and port {port} are no proxy; give a host name or address and a port.")


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What is followed, and through which proxy."""

    variant: str
    branch: str
    #: Empty for none.
    proxy_address: str = ""
    proxy_port: int = 0

    @property
    def proxy_url(self) -> str:
        """The proxy as programs take it, or empty."""
        return f"http://{self.proxy_address}:{self.proxy_port}" if self.proxy_address else ""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What can be followed."""

    variants: tuple[str, ...]
    branches: tuple[str, ...]
    dev_branches: tuple[str, ...] = ()


def defaults_of(image: Image) -> Preferences:
    """Return what a device follows whose owner chose nothing."""
    return Preferences(variant=image.variant, branch=image.default_update_branch or STABLE_BRANCH)


def read_preferences(path: Path, *, defaults: Preferences) -> Preferences:
    """Return the preferences in `path`; what it does not say, or says in no usable way, is the default."""
    if not path.exists():
        return defaults
    file = IniFile.read(path)
    variant, branch = file.text("Choices", "Variant"), file.text("Choices", "Branch")
    address, port = file.text("Proxy", "Address"), file.text("Proxy", "Port")
    has_proxy = bool(address) and port.isascii() and port.isdigit() and 0 < int(port[:6]) <= _MAX_PORT
    return Preferences(
        variant=variant if is_name(variant) else defaults.variant,
        branch=branch if is_name(branch) else defaults.branch,
        proxy_address=address if has_proxy else "",
        proxy_port=int(port[:6]) if has_proxy else 0,
    )


def write_preferences(path: Path, preferences: Preferences) -> None:
    """Store what the owner chose."""
    lines = ["[Choices]", f"Variant={preferences.variant}", f"Branch={preferences.branch}", ""]
    if preferences.proxy_address:
        lines += ["[Proxy]", f"Address={preferences.proxy_address}", f"Port={preferences.proxy_port}", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, "\n".join(lines).encode())


def checked_proxy(address: str, port: int) -> tuple[str, int]:
    """Return a proxy that can be written down and used.

    Raises:
        UnusableProxyError: It cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,253}", address) or not 0 < port <= _MAX_PORT:
        raise UnusableProxyError(address=address, port=port)
    return address, port


def take_over_legacy_choice(path: Path, *, defaults: Preferences) -> Preferences | None:
    """Return what the word in a file of the past means, or None; the caller removes the file."""
    try:
        word = path.read_text().strip()
    except (OSError, UnicodeError):
        return None
    if word in _LEGACY_BRANCHES:
        return Preferences(variant=defaults.variant, branch=_LEGACY_BRANCHES[word])
    if word.partition("-")[0] == LEGACY_VARIANT and is_name(word):
        variant, branch = split_legacy_variant(word)
        return Preferences(variant=variant, branch=branch)
    return None


def read_choices(file: IniFile, *, own: Preferences) -> Choices:
    """Return what a configuration or a `remote-info.conf` lets an owner choose; the image's own is always there.

    Names that could lead out of a path or an option are left out.
    """

    def named(option: str, *more: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in (*file.parts("Server", option), *more) if is_name(name)))

    return Choices(
        variants=named("Variants", own.variant),
        branches=named("Branches", own.branch),
        dev_branches=named("BranchesDev"),
    )


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a variant or branch."""
    return _NAME.fullmatch(text) is not None
