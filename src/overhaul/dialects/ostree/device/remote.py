"""A remote of the device's repository: where it is, and what must be signed by whom."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.keyfile import KeyFile, boolean, read_key_file
from overhaul.errors import DeviceError
from overhaul.transfer.wire import is_address

#: Where the system's remotes lie, below the device's root.
_SYSTEM_REMOTES = "etc/ostree/remotes.d"
#: Keys that every remote trusts.
_GLOBAL_KEYS = "usr/share/ostree/trusted.gpg.d"


class RemoteError(DeviceError):
    """A remote that cannot be pulled from."""

    def __init__(self, *, remote: str, reason: str) -> None:
        self.remote = remote
        self.reason = reason
        super().__init__(f"The remote {remote!r} cannot be used: {reason}. See its section in the repository's config.")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What the configuration says about a remote."""

    name: str
    url: str
    #: Where objects and deltas lie when it is not the same place.
    content_url: str
    verifies_commits: bool
    verifies_summary: bool
    #: Files and directories with OpenPGP keys, armored or binary.
    gpg_key_paths: tuple[Path, ...]
    #: Raw ed25519 public keys; commits must be signed by one of them as well when there are any.
    ed25519_keys: tuple[bytes, ...] = ()
    verifies_ed25519: bool = False
    ca_file: Path | None = None
    proxy: str | None = None
    unconfigured: str = ""


def load_remote(repository: BareRepository, name: str, *, root: Path = Path("/")) -> Remote:
    """Return the remote `name` of the repository, or of the system's own remotes below `root`.

    Raises:
        RemoteError: It is not there, or asks for what is not supported; nothing is silently left unchecked.
    """
    group = f'remote "{name}"'
    content = _find(repository, group, root)
    if content is None:
        raise RemoteError(remote=name, reason="the repository does not know it")
    values = content.items(group)
    url = values.get("url", "").rstrip("/")
    if not is_address(url):
        raise RemoteError(remote=name, reason=f"its url {url!r} is neither https nor http")
    content_url = (values.get("contenturl") or url).rstrip("/")
    if not is_address(content_url):
        raise RemoteError(remote=name, reason=f"its contenturl {content_url!r} is neither https nor http")
    for key in ("tls-client-cert-path", "tls-client-key-path", "custom-backend"):
        if values.get(key):
            raise RemoteError(remote=name, reason=f"{key} is not supported here; use the ostree back end for it")
    if boolean(values.get("tls-permissive"), default=False):
        raise RemoteError(remote=name, reason="tls-permissive would accept any server; name its authority instead")
    kinds = _signature_kinds(name, values.get("sign-verify", "false"))
    ca_file = values.get("tls-ca-path")
    return Remote(
        name=name,
        url=url,
        content_url=content_url,
        verifies_commits=boolean(values.get("gpg-verify"), default=True),
        verifies_summary=boolean(values.get("gpg-verify-summary"), default=False),
        gpg_key_paths=_gpg_key_paths(repository, name, values.get("gpgkeypath", ""), root),
        ed25519_keys=_ed25519_keys(name, values) if kinds else (),
        verifies_ed25519=bool(kinds),
        ca_file=Path(ca_file) if ca_file else None,
        proxy=values.get("proxy") or None,
        unconfigured=values.get("unconfigured-state", ""),
    )


def _find(repository: BareRepository, group: str, root: Path) -> KeyFile | None:
    if group in repository.config.groups():
        return repository.config
    directory = root / _SYSTEM_REMOTES
    for path in sorted(directory.glob("*.conf")) if directory.is_dir() else ():
        content = read_key_file(path)
        if group in content.groups():
            return content
    return None


def _signature_kinds(name: str, text: str) -> tuple[str, ...]:
    if text.strip() in {"false", "0", ""}:
        return ()
    kinds = tuple(kind for kind in text.replace(",", ";").split(";") if kind.strip())
    if text.strip() in {"true", "1"}:
        kinds = ("ed25519",)
    if set(kinds) != {"ed25519"}:
        raise RemoteError(remote=name, reason=f"signatures of the kinds {text!r} are not supported, ed25519 is")
    return kinds


def _ed25519_keys(name: str, values: Mapping[str, str]) -> tuple[bytes, ...]:
    texts = [values.get("verification-ed25519-key", "")]
    path = values.get("verification-ed25519-file", "")
    if path:
        try:
            texts += Path(path).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteError(remote=name, reason=f"the keys in {path} cannot be read: {error}") from error
    keys = []
    for text in filter(None, (part.strip() for part in texts)):
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RemoteError(remote=name, reason=f"{text[:80]!r} is no ed25519 key in base64") from error
        if len(key) != 32:
            raise RemoteError(remote=name, reason=f"an ed25519 key has {len(key)} bytes instead of 32")
        keys.append(key)
    if not keys:
        raise RemoteError(remote=name, reason="sign-verify is set, but there is no ed25519 key")
    return tuple(keys)


def _gpg_key_paths(repository: BareRepository, name: str, text: str, root: Path) -> tuple[Path, ...]:
    own = repository.path / f"{name}.trustedkeys.gpg"
    named = [Path(part) for part in text.split(";") if part]
    system = root / _GLOBAL_KEYS
    # Only what ends like this: distributions put a note for people beside the keys.
    candidates = [own, *named, *(sorted(system.glob("*.gpg")) if system.is_dir() else ())]
    found: list[Path] = []
    for path in candidates:
        if path.is_dir():
            found += sorted(child for child in path.iterdir() if child.is_file())
        elif path.is_file():
            found.append(path)
    return tuple(found)
