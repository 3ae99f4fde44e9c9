"""Which roles there are, which target path belongs to which, and how long their signatures last.

Roles are cut by what a thief of their keys could do:

* `root` names the keys of the top-level roles; `targets` names the delegations. Both are kept offline.
* `P` (one for each product) signs release records, `P/releases/VARIANT/ARCH/VERSION/BUILD.json`. Kept offline.
* `P-policy` signs channel policies, `P/policy/CHANNEL.json`, and what they open as other systems' clients are told it,
  `P/answers/DIALECT.json`: it can choose among releases, never make one.
* `builds` signs images made on demand under `builds/`; it terminates, so nothing else is ever asked for such a
  path, and devices refuse it unless they opted in.
* `snapshot` and `timestamp` say which versions of all these are current. Kept online.

Everything here is pure. No two roles share a path, so a path alone tells whose signature counts.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from overhaul.errors import InputError
from overhaul.release.names import check_name

ROOT = "root"
TARGETS = "targets"
SNAPSHOT = "snapshot"
TIMESTAMP = "timestamp"
TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
#: The delegated role for images made on demand, and the first part of its target paths.
BUILDS = "builds"

#: Field inside `signed` of every role: seconds since 1970 UTC at which it was signed. Devices learn their time
#: floor from it; other TUF clients ignore it.
SIGNED_AT = "x-overhaul-signed-at"

_POLICY_SUFFIX = "-policy"
_RESERVED = frozenset({*TOP_LEVEL, BUILDS})
# A TUF pattern matches only paths with as many parts as it has, so each allowed depth is spelled out.
_BUILDS_PATHS = tuple("builds" + "/*" * depth for depth in range(2, 7))


class ReservedNameError(InputError):
    """A product name that would be mistaken for a role."""

    def __init__(self, *, product: str) -> None:
        self.product = product
        super().__init__(
            f"{product!r} cannot name a product: {', '.join(sorted(_RESERVED))} and names ending in "
            f"{_POLICY_SUFFIX!r} are signing roles; choose another name."
        )


class UnownedPathError(InputError):
    """A target path that no role signs."""

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"No role signs the path {path!r}: release records are PRODUCT/releases/VARIANT/ARCH/VERSION/BUILD.json, "
            "policies PRODUCT/policy/CHANNEL.json and answers PRODUCT/answers/DIALECT.json."
        )


def check_product(product: str) -> str:
    """Return `product` when a product can have this name; raise `UnusableNameError` or `ReservedNameError`."""
    check_name("product", product)
    if product in _RESERVED or product.endswith(_POLICY_SUFFIX):
        raise ReservedNameError(product=product)
    return product


def policy_role(product: str) -> str:
    """Return the name of the role that signs the policies of `product`."""
    return product + _POLICY_SUFFIX


def role_of_path(path: str) -> str:
    """Return the only role whose signature counts for the target `path`; raise `UnownedPathError` for no role."""
    parts = path.split("/")
    if all(part not in {"", ".", ".."} for part in parts):
        match parts:
            case ["builds", *rest] if 2 <= len(rest) <= 6:
                return BUILDS
            case [product, "releases", _variant, _arch, _version, _build] if product not in _RESERVED:
                return product
            case [product, "policy" | "answers", _name] if product not in _RESERVED:
                return policy_role(product)
    raise UnownedPathError(path=path)


def paths_of_role(role: str) -> tuple[str, ...]:
    """Return the TUF path patterns of the delegated `role`."""
    if role == BUILDS:
        return _BUILDS_PATHS
    if role.endswith(_POLICY_SUFFIX):
        product = role.removesuffix(_POLICY_SUFFIX)
        return f"{product}/policy/*", f"{product}/answers/*"
    return (f"{role}/releases/*/*/*/*",)


def answers_path(product: str, dialect: str) -> str:
    """Return the target path of what the clients of `dialect` are told about `product`."""
    return f"{product}/answers/{dialect}.json"


def is_policy_role(role: str) -> bool:
    """Tell whether `role` signs policies."""
    return role.endswith(_POLICY_SUFFIX)


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """How long a signature of each kind of role lasts, and when it is time for the next."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    product: timedelta = timedelta(days=365)
    policy: timedelta = timedelta(days=90)
    builds: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=2)
    #: Lifetimes of single roles, by role name, that differ from their kind's.
    exceptions: dict[str, timedelta] = field(default_factory=dict)
    #: A signature with less than one part in this many of its life left is renewed by a refresh.
    renew_in_last_part: int = 3

    def of(self, role: str) -> timedelta:
        """Return the lifetime of a signature of `role`."""
        if role in self.exceptions:
            return self.exceptions[role]
        kinds = {
            ROOT: self.root,
            TARGETS: self.targets,
            SNAPSHOT: self.snapshot,
            TIMESTAMP: self.timestamp,
            BUILDS: self.builds,
        }
        return kinds.get(role, self.policy if is_policy_role(role) else self.product)

    def is_due(self, role: str, *, expires: datetime, now: datetime) -> bool:
        """Tell whether a signature of `role` that ends at `expires` should be renewed at `now`."""
        return expires - now < self.of(role) / self.renew_in_last_part
