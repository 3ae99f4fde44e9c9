"""The publisher's signing keys: a directory outside the repository's tree.

```
KEYS/                    0700
  keyring.json           public: format, demo mark, for each role its threshold and the ids, public halves and
                         file names of its keys
  root-1.pem ...         0600, one ed25519 private key each (PKCS#8 PEM, optionally under a passphrase)
```

A keyring may lack any of the PEM files: a root key lives on a stick in a safe, its public half still stands in
`keyring.json`. Which keys count for a role is said by signed metadata alone; a keyring only offers the private
halves it has, and says how many are missing. Keys made by `generate(demo=True)` are marked as throw-away ones;
whoever prints or uses a keyring shows `DEMO_WARNING` loudly.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replace_bytes
from overhaul.trust import roles

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner, SSlibKey

KEYRING_FORMAT = 1
KEYRING_FILE = "keyring.json"
DEMO_WARNING = (
    "DEMO KEYS: everything signed here is signed by throw-away keys that lie unprotected on this machine. "
    "Never ship a device that trusts them."
)

# `~` may not begin a product name, so a retired set of keys never takes the place of a role.
_RETIRED = "~"

#: Asked for the passphrase of a key file, by file name; None when there is none to give.
Passphrases = Callable[[str], bytes | None]


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """The public half of a key and the file its private half has when it is here."""

    keyid: str
    #: 64 hexadecimal digits of the ed25519 public key.
    public: str
    file: str

    def as_tuf(self) -> "SSlibKey":
        """Return the key as metadata carries it."""
        from securesystemslib.signer import SSlibKey

        return SSlibKey(self.keyid, "ed25519", "ed25519", {"public": self.public})


class RoleKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a role, and how many of them must sign."""

    threshold: int
    keys: tuple[PublicKey, ...]


class _KeyringFile(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    demo: bool
    roles: dict[str, RoleKeys]


@dataclass(frozen=True, kw_only=True)
class KeyCount:
    """How many keys a role gets, and how many of them must sign."""

    keys: int
    threshold: int

    def __post_init__(self) -> None:
        """Refuse a threshold that can never, or is always, reached."""
        if not 1 <= self.threshold <= self.keys:
            raise InputError(f"A threshold of {self.threshold} among {self.keys} keys makes no sense; give 1 to keys.")


@dataclass(frozen=True, kw_only=True)
class KeyPlan:
    """How many keys each kind of role gets when keys are made."""

    root: KeyCount = KeyCount(keys=3, threshold=2)
    targets: KeyCount = KeyCount(keys=3, threshold=2)
    product: KeyCount = KeyCount(keys=1, threshold=1)
    policy: KeyCount = KeyCount(keys=1, threshold=1)
    online: KeyCount = KeyCount(keys=1, threshold=1)
    #: Counts of single roles, by role name, that differ from their kind's.
    exceptions: Mapping[str, KeyCount] = field(default_factory=dict)

    def of(self, role: str) -> KeyCount:
        """Return the count for `role`."""
        if role in self.exceptions:
            return self.exceptions[role]
        kinds = {
            roles.ROOT: self.root,
            roles.TARGETS: self.targets,
            roles.SNAPSHOT: self.online,
            roles.TIMESTAMP: self.online,
            roles.BUILDS: self.online,
        }
        return kinds.get(role, self.policy if roles.is_policy_role(role) else self.product)


class MissingKeyError(OperatorError):
    """Fewer private keys of a role are here than must sign."""

    def __init__(self, *, role: str, have: int, need: int, directory: Path) -> None:
        self.role = role
        self.have = have
        self.need = need
        self.directory = directory
        super().__init__(
            f"Signing as {role} needs {need} of its private keys and {directory} holds {have}; "
            "bring the missing key files there, or sign where they are."
        )


class KeysInsideRepositoryError(InputError):
    """Private keys inside the tree that is copied to mirrors and buckets."""

    def __init__(self, *, directory: Path, repository: Path) -> None:
        self.directory = directory
        self.repository = repository
        super().__init__(
            f"The keys directory {directory} lies inside the repository {repository}, which is copied and served; "
            "choose a directory outside of it."
        )


class KeyringExistsError(InputError):
    """Making keys where some are."""

    def __init__(self, *, directory: Path) -> None:
        self.directory = directory
        super().__init__(f"{directory} already holds a keyring; use it, or name an empty directory.")


class UnusableKeyringError(OperatorError):
    """A keyring or key file that is absent, damaged, exposed or locked."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


@dataclass(frozen=True, kw_only=True)
class KeyringListing:
    """What a person is told of one role's keys."""

    role: str
    threshold: int
    keyids: tuple[str, ...]
    #: Those whose private half is in this keyring.
    held: tuple[str, ...]


class Keyring:
    """The keys in one directory. Make one with `generate` or `open`."""

    def __init__(self, directory: Path, content: _KeyringFile, passphrases: Passphrases | None) -> None:
        self.directory = directory
        self._content = content
        self._passphrases = passphrases
        self._signers: dict[str, CryptoSigner] = {}

    @classmethod
    def open(
        cls, directory: Path, *, repository: Path | None = None, passphrases: Passphrases | None = None
    ) -> "Keyring":
        """Return the keyring in `directory`, which must not lie inside `repository`.

        Raises:
            KeysInsideRepositoryError: It does.
            UnusableKeyringError: There is none, or it cannot be read.
        """
        refuse_inside(directory, repository)
        path = directory / KEYRING_FILE
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_KeyringFile)
        except FileNotFoundError as error:
            reason = "it does not exist; make keys with `overhaul init`, or name the directory that holds them"
            raise UnusableKeyringError(path=path, reason=reason) from error
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise UnusableKeyringError(path=path, reason=str(error)) from error
        if content.format != KEYRING_FORMAT:
            reason = f"it has format {content.format} and {KEYRING_FORMAT} is the newest known here"
            raise UnusableKeyringError(path=path, reason=reason)
        return cls(directory, content, passphrases)

    @classmethod
    def generate(
        cls,
        directory: Path,
        *,
        products: Collection[str],
        repository: Path | None = None,
        plan: KeyPlan | None = None,
        with_builds: bool = False,
        demo: bool = False,
        passphrases: Passphrases | None = None,
    ) -> "Keyring":
        """Make keys for the top-level roles and for `products`, and return their keyring.

        Raises:
            KeysInsideRepositoryError: `directory` lies inside `repository`.
            KeyringExistsError: There is a keyring already.
        """
        refuse_inside(directory, repository)
        if (directory / KEYRING_FILE).exists():
            raise KeyringExistsError(directory=directory)
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        keyring = cls(directory, _KeyringFile(format=KEYRING_FORMAT, demo=demo, roles={}), passphrases)
        names = [*roles.TOP_LEVEL, *([roles.BUILDS] if with_builds else [])]
        for product in products:
            names += [roles.check_product(product), roles.policy_role(product)]
        keyring.add_roles(names, plan=plan)
        return keyring

    @property
    def demo(self) -> bool:
        """Whether these are throw-away keys."""
        return self._content.demo

    @property
    def role_names(self) -> tuple[str, ...]:
        """The roles this keyring knows keys of, without the retired sets."""
        return tuple(name for name in self._content.roles if not name.startswith(_RETIRED))

    def role(self, role: str) -> RoleKeys:
        """Return the public keys of `role`; raise `MissingKeyError` when the keyring knows none."""
        known = self._content.roles.get(role)
        if known is None:
            raise MissingKeyError(role=role, have=0, need=1, directory=self.directory)
        return known

    def listing(self) -> tuple[KeyringListing, ...]:
        """Return what `overhaul keys list` shows."""
        return tuple(
            KeyringListing(
                role=name,
                threshold=role.threshold,
                keyids=tuple(key.keyid for key in role.keys),
                held=tuple(key.keyid for key in role.keys if (self.directory / key.file).exists()),
            )
            for name, role in self._content.roles.items()
        )

    def held(self, keyids: Collection[str]) -> tuple[str, ...]:
        """Return those of `keyids` whose private half is here."""
        return tuple(key.keyid for key in self._all_keys(keyids) if (self.directory / key.file).exists())

    def signers(self, role: str, *, keyids: Collection[str], threshold: int) -> Sequence["CryptoSigner"]:
        """Return a signer for each of `keyids` that is here.

        Raises:
            MissingKeyError: Fewer than `threshold` are here.
            UnusableKeyringError: A key file is damaged, readable by others, or its passphrase is unknown.
        """
        held = self.held(keyids)
        if len(held) < threshold:
            raise MissingKeyError(role=role, have=len(held), need=threshold, directory=self.directory)
        return [self._signer(keyid) for keyid in held]

    def add_roles(self, names: Collection[str], *, plan: KeyPlan | None = None) -> None:
        """Make keys for those of the roles `names` that have none yet."""
        known = dict(self._content.roles)
        for name in names:
            if name not in known:
                known[name] = self._make(name, (plan or KeyPlan()).of(name))
        self._save(known)

    def renew(self, name: str, *, plan: KeyPlan | None = None) -> None:
        """Give the role `name` new keys.

        The old private keys stay in the directory, and are needed until metadata that names the new ones is
        published; `held` and `signers` still find them.
        """
        old = self.role(name)
        count = (plan or KeyPlan(exceptions={name: KeyCount(keys=len(old.keys), threshold=old.threshold)})).of(name)
        retired = {**self._content.roles, _retired_name(name, self._content.roles): old}
        self._save({**retired, name: self._make(name, count)})

    def _make(self, name: str, count: KeyCount) -> RoleKeys:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from securesystemslib.signer import SSlibKey

        keys = []
        taken = {key.file for role in self._content.roles.values() for key in role.keys}
        for _ in range(count.keys):
            private = Ed25519PrivateKey.generate()
            key = SSlibKey.from_crypto(private.public_key())
            file = _free_name(self.directory, name, taken)
            replace_bytes(self.directory / file, self._as_pem(private, file), mode=0o600)
            keys.append(PublicKey(keyid=key.keyid, public=key.keyval["public"], file=file))
        return RoleKeys(threshold=count.threshold, keys=tuple(keys))

    def _as_pem(self, private: "Ed25519PrivateKey", file: str) -> bytes:
        from cryptography.hazmat.primitives import serialization

        passphrase = self._passphrases(file) if self._passphrases else None
        locking: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            locking = serialization.BestAvailableEncryption(passphrase)
        return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locking)

    def _save(self, known: dict[str, RoleKeys]) -> None:
        self._content = msgspec.structs.replace(self._content, roles=known)
        replace_bytes(self.directory / KEYRING_FILE, msgspec.json.format(msgspec.json.encode(self._content)) + b"\n")

    def _all_keys(self, keyids: Collection[str]) -> list[PublicKey]:
        wanted = set(keyids)
        unique = {key.keyid: key for role in self._content.roles.values() for key in role.keys if key.keyid in wanted}
        return list(unique.values())

    def _signer(self, keyid: str) -> "CryptoSigner":
        if keyid not in self._signers:
            [key] = self._all_keys([keyid])
            self._signers[keyid] = self._load(key)
        return self._signers[keyid]

    def _load(self, key: PublicKey) -> "CryptoSigner":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner

        path = self.directory / key.file
        if path.stat().st_mode & 0o077:
            raise UnusableKeyringError(path=path, reason="others can read this private key; run `chmod 600` on it")
        data = path.read_bytes()
        passphrase = None
        if b"ENCRYPTED" in data.split(b"\n", 1)[0]:
            passphrase = self._passphrases(key.file) if self._passphrases else None
            if not passphrase:
                raise UnusableKeyringError(path=path, reason="it is locked by a passphrase and none was given")
        try:
            private = load_pem_private_key(data, passphrase)
        except ValueError as error:
            reason = "its passphrase is wrong or it is damaged"
            raise UnusableKeyringError(path=path, reason=reason) from error
        if not isinstance(private, Ed25519PrivateKey) or private.public_key().public_bytes_raw().hex() != key.public:
            raise UnusableKeyringError(path=path, reason="it is not the key that keyring.json names")
        return CryptoSigner(private, key.as_tuf())


def generate_demo_keys(
    directory: Path, *, products: Collection[str], repository: Path | None = None, with_builds: bool = False
) -> Keyring:
    """Make throw-away keys for `products`, marked as such."""
    return Keyring.generate(directory, products=products, repository=repository, with_builds=with_builds, demo=True)


def refuse_inside(directory: Path, repository: Path | None) -> None:
    """Raise `KeysInsideRepositoryError` when `directory` lies in the tree of `repository`."""
    if repository is not None and directory.resolve().is_relative_to(repository.resolve()):
        raise KeysInsideRepositoryError(directory=directory, repository=repository)


def _free_name(directory: Path, role: str, taken: Collection[str]) -> str:
    """Return a name that no key file here has, nor one that is kept elsewhere."""
    number = 1
    while (name := f"{role}-{number}.pem") in taken or (directory / name).exists():
        number += 1
    return name


def _retired_name(role: str, known: Collection[str]) -> str:
    number = 1
    while f"{_RETIRED}{role}-{number}" in known:
        number += 1
    return f"{_RETIRED}{role}-{number}"
