"""What the metadata editor answers with and refuses: records and errors, without the libraries of TUF."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from overhaul.errors import InputError


class RepositoryExistsError(InputError):
    """First metadata for a repository that has some."""

    def __init__(self) -> None:
        super().__init__("The repository already has signed metadata; publish into it, or name an empty directory.")


class UnknownProductError(InputError):
    """A product that the repository does not carry."""

    def __init__(self, *, product: str, known: Collection[str]) -> None:
        self.product = product
        self.known = tuple(known)
        super().__init__(
            f"The repository carries no product {product!r} (it carries: {', '.join(known) or 'none'}); "
            "correct the name, or add the product first."
        )


class ProductExistsError(InputError):
    """A product added twice."""

    def __init__(self, *, product: str) -> None:
        self.product = product
        super().__init__(f"The repository already carries the product {product!r}; publish into it.")


class UnknownRoleError(InputError):
    """A role that the repository does not have."""

    def __init__(self, *, role: str, known: Collection[str]) -> None:
        self.role = role
        self.known = tuple(known)
        super().__init__(f"The repository has no role {role!r}; it has {', '.join(known)}.")


class OutdatedDraftError(InputError):
    """Metadata that was signed elsewhere, for a repository that went on meanwhile."""

    http_status = 409

    def __init__(self, *, role: str, version: int, published: int) -> None:
        self.role = role
        self.version = version
        self.published = published
        super().__init__(
            f"This is version {version} of {role}, and version {published} is published now; "
            "make a new request with `overhaul keys sign-request` and have that signed."
        )


@dataclass(frozen=True, kw_only=True)
class TargetInfo:
    """What is signed of a target."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """What a person is told of a role's metadata."""

    role: str
    version: int
    expires: datetime
    threshold: int
    #: How many of its private keys are in the keyring.
    keys_held: int

    @property
    def can_sign(self) -> bool:
        """Whether the keyring can sign this role."""
        return self.keys_held >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Keys of which at least `threshold` must sign a role."""

    keyids: tuple[str, ...]
    threshold: int


@dataclass(frozen=True, kw_only=True)
class UnsignedRole:
    """The next version of a role, complete but for signatures that cannot be made here."""

    role: str
    #: With the signatures that could.
    metadata: bytes
    #: The published version; None for a role that is new.
    previous: bytes | None
    #: Two for a root, whose predecessor's keys must sign it too.
    owners: tuple[Owner, ...]


@dataclass(frozen=True, kw_only=True)
class RefreshReport:
    """What a refresh signed again, and what it could not although its time is near."""

    renewed: tuple[str, ...]
    expiring: tuple[RoleStatus, ...]
