"""The publisher's signing keys: a directory outside the repository's tree.

```
KEYS/                    0700
  keyring.json           public: format, demo mark, for each role its threshold and the ids, public halves and
                         file or token names of its keys
  root-1.pem ...         0600, one private key each (PKCS#8 PEM, optionally under a passphrase)
  LABEL.pin              0600, the PIN of the PKCS#11 token LABEL, where nobody is there to type it
```

A keyring may lack any of the PEM files: a root key lives on a stick in a safe, its public half still stands in
`keyring.json`. Which keys count for a role is said by signed metadata alone; a keyring only offers the private
halves it has, and says how many are missing. New keys of a role are kept here as its next ones before metadata
names them (`begin`), and become its keys when that is published (`settle`), so that a run that dies in between
loses no private key and is simply run again.

Keys made by `generate(demo=True)` are marked as throw-away ones;
whoever prints or uses a keyring shows `DEMO_WARNING` loudly.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replace_bytes
from overhaul.trust import roles
from overhaul.trust.keyfiles import Passphrases, UnusableKeyringError, load_key_file, read_secret
from overhaul.trust.keys import ED25519, KeyCount, KeyPlan, PublicKey, RoleKeys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import Signer

#: Written as 1 unless a key is of a kind that came with 2: another scheme than ed25519, or a token.
KEYRING_FORMAT = 2
KEYRING_FILE = "keyring.json"
DEMO_WARNING = (
    "DEMO KEYS: everything signed here is signed by throw-away keys that lie unprotected on this machine. "
    "Never ship a device that trusts them."
)

# `~` may not begin a product name, so a retired or a next set of keys never takes the place of a role.
_RETIRED = "~"
_NEXT = "~~"


class _KeyringFile(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    demo: bool
    roles: dict[str, RoleKeys]


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


@dataclass(frozen=True, kw_only=True)
class KeyringListing:
    """What a person is told of one role's keys."""

    role: str
    threshold: int
    keyids: tuple[str, ...]
    #: Those whose private half is in this keyring.
    held: tuple[str, ...]

    @property
    def title(self) -> str:
        """The role as a person is told of it: next and retired sets of keys are called so."""
        if self.role.startswith(_NEXT):
            return f"{self.role.removeprefix(_NEXT)} (next, not published)"
        if self.role.startswith(_RETIRED):
            return f"{self.role.removeprefix(_RETIRED).rpartition('-')[0]} (retired)"
        return self.role


class Keyring:
    """The keys in one directory. Make one with `generate` or `open`."""

    def __init__(self, directory: Path, content: _KeyringFile, passphrases: Passphrases | None) -> None:
        self.directory = directory
        self._content = content
        self._passphrases = passphrases
        self._signers: dict[str, Signer] = {}

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
        if not 1 <= content.format <= KEYRING_FORMAT:
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
        keyring = cls(directory, _KeyringFile(format=1, demo=demo, roles={}), passphrases)
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
                held=tuple(key.keyid for key in role.keys if self._is_here(key)),
            )
            for name, role in self._content.roles.items()
        )

    def held(self, keyids: Collection[str]) -> tuple[str, ...]:
        """Return those of `keyids` whose private half is here."""
        return tuple(key.keyid for key in self._all_keys(keyids) if self._is_here(key))

    def find(self, keyid: str) -> PublicKey | None:
        """Return what is known here of a key, whatever role it has or had."""
        return next(iter(self._all_keys([keyid])), None)

    def signers(self, role: str, *, keyids: Collection[str], threshold: int) -> Sequence["Signer"]:
        """Return a signer for each of `keyids` that is here.

        Raises:
            MissingKeyError: Fewer than `threshold` are here.
            UnusableKeyringError: A key file is damaged, readable by others, or its passphrase is unknown.
            TokenError: A token refuses to sign.
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

    def make_keys(self, name: str, count: int) -> tuple[PublicKey, ...]:
        """Make private keys under names of the role `name`, and return their public halves for `begin`."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from securesystemslib.signer import SSlibKey

        keys = []
        for _ in range(count):
            private = Ed25519PrivateKey.generate()
            file = self.free_name(name)
            replace_bytes(self.directory / file, self._as_pem(private, file), mode=0o600)
            keys.append(PublicKey.from_tuf(SSlibKey.from_crypto(private.public_key()), file=file))
        return tuple(keys)

    def free_name(self, name: str) -> str:
        """Return a file name for a key of the role `name` that no key here has, nor one that is kept elsewhere."""
        return _free_name(
            self.directory, name, {key.file for role in self._content.roles.values() for key in role.keys}
        )

    def following(self, name: str) -> RoleKeys | None:
        """Return the next keys of the role `name`, which metadata is not yet known to name."""
        return self._content.roles.get(_NEXT + name)

    def begin(self, following: Mapping[str, RoleKeys]) -> None:
        """Keep the next keys of some roles, durably and all at once, beside those they have."""
        self._save({**self._content.roles, **{_NEXT + name: keys for name, keys in following.items()}})

    def settle(self, names: Collection[str]) -> None:
        """Make the next keys of the roles `names` their keys, since metadata names them now; the old ones retire."""
        known = dict(self._content.roles)
        for name in names:
            old, following = known.get(name), known.pop(_NEXT + name)
            if old is not None and not {key.keyid for key in old.keys} <= {key.keyid for key in following.keys}:
                known[_retired_name(name, known)] = old
            known[name] = following
        self._save(known)

    def abandon(self, name: str) -> None:
        """Drop the next keys of the role `name`; their private halves stay in the directory, known to nobody."""
        self._save({known: keys for known, keys in self._content.roles.items() if known != _NEXT + name})

    def _make(self, name: str, count: KeyCount) -> RoleKeys:
        return RoleKeys(threshold=count.threshold, keys=self.make_keys(name, count.keys))

    def _as_pem(self, private: "Ed25519PrivateKey", file: str) -> bytes:
        from cryptography.hazmat.primitives import serialization

        passphrase = self._passphrases(file) if self._passphrases else None
        locking: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            locking = serialization.BestAvailableEncryption(passphrase)
        return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locking)

    def _save(self, known: dict[str, RoleKeys]) -> None:
        plain = all(key.scheme == ED25519 and key.file for role in known.values() for key in role.keys)
        self._content = msgspec.structs.replace(self._content, format=1 if plain else KEYRING_FORMAT, roles=known)
        replace_bytes(self.directory / KEYRING_FILE, msgspec.json.format(msgspec.json.encode(self._content)) + b"\n")

    def _all_keys(self, keyids: Collection[str]) -> list[PublicKey]:
        wanted = set(keyids)
        unique = {key.keyid: key for role in self._content.roles.values() for key in role.keys if key.keyid in wanted}
        return list(unique.values())

    def _signer(self, keyid: str) -> "Signer":
        if keyid not in self._signers:
            [key] = self._all_keys([keyid])
            self._signers[keyid] = self._load(key)
        return self._signers[keyid]

    def _is_here(self, key: PublicKey) -> bool:
        if key.token:
            from overhaul.trust.tokens import is_present

            return is_present(key.token)
        return bool(key.file) and (self.directory / key.file).exists()

    def _load(self, key: PublicKey) -> "Signer":
        if key.token:
            from overhaul.trust.tokens import TokenSigner

            return TokenSigner(key.token, key.as_tuf(), pin=self.pin)
        signer = load_key_file(self.directory / key.file, passphrases=self._passphrases)
        if signer.public_key.keyval["public"].strip() != key.public.strip():
            raise UnusableKeyringError(
                path=self.directory / key.file, reason="it is not the key that keyring.json names"
            )
        return signer

    def pin(self, label: str) -> str | None:
        """Return the PIN of the token `label`: from its file here, or as the person gives it."""
        path = self.directory / f"{label}.pin"
        if "/" not in label and path.exists():
            return read_secret(path).decode(errors="replace").strip()
        given = self._passphrases(label) if self._passphrases else None
        return None if given is None else given.decode(errors="replace")


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
