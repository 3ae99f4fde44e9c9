"""Why published bytes were refused: the members of the trust family, one for each attack it answers.

A refusal means that nothing of the refused bytes was used or kept. More bytes than signed are refused by the
fetching seam's `OversizeError`; too few, too slowly or none at all are network errors, not refusals.
"""

from datetime import datetime

from overhaul.errors import InputError, TrustError


class UnusableRootError(InputError):
    """The root metadata a device was given to start from is no such thing."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"The root metadata this device starts from cannot be used ({reason}); copy metadata/1.root.json "
            "of the repository again over a channel you trust."
        )


class MalformedMetadataError(TrustError):
    """Metadata that cannot be read as what it should be."""

    def __init__(self, *, role: str, reason: str) -> None:
        self.role = role
        self.reason = reason
        super().__init__(
            f"The {role} metadata cannot be read ({reason}); run `overhaul repository verify` where it is published, "
            "and if it is whole there, use https: something on the way cuts or changes it."
        )


class BadSignatureError(TrustError):
    """Metadata without enough signatures of trusted keys."""

    def __init__(self, *, role: str, reason: str) -> None:
        self.role = role
        self.reason = reason
        super().__init__(
            f"The {role} metadata is not signed by enough trusted keys ({reason}); "
            "ask the publisher whether the keys of this role were changed."
        )


class RollbackError(TrustError):
    """Older metadata than was trusted before."""

    def __init__(self, *, role: str, reason: str) -> None:
        self.role = role
        self.reason = reason
        super().__init__(
            f"The {role} metadata goes back behind what was trusted before ({reason}); a cache or somebody "
            "on the way gives out an old repository, or it was restored from a backup and must be re-signed with "
            "higher versions."
        )


class MixAndMatchError(TrustError):
    """Metadata that is not the one its signed list names."""

    def __init__(self, *, role: str, reason: str) -> None:
        self.role = role
        self.reason = reason
        super().__init__(
            f"The {role} metadata is not the file that the signed list names ({reason}); the mirror mixes "
            "states of the repository, try again later or use another one."
        )


class StaleRepositoryError(TrustError):
    """Signatures that ended: a frozen repository, a stopped re-signing timer, or a wrong clock."""

    def __init__(self, *, role: str, expires: datetime | None, reference: datetime) -> None:
        self.role = role
        self.expires = expires
        self.reference = reference
        ended = f" expired at {_when(expires)}" if expires is not None else " has expired"
        super().__init__(
            f"The {role} metadata{ended} and this device reckons it is {_when(reference)}: its clock is wrong, "
            "somebody freezes the repository by keeping newer metadata from it, or `overhaul repository refresh` "
            "no longer runs; check the clock first."
        )


class WrongTargetError(TrustError):
    """Bytes that are not the ones signed for their path."""

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"{path} is not the file that was signed under this path ({reason}); "
            "run `overhaul repository verify` where it is published."
        )


class UnknownTargetError(TrustError):
    """A path that the one role allowed to sign it does not list."""

    def __init__(self, *, path: str, role: str) -> None:
        self.path = path
        self.role = role
        super().__init__(
            f"{path} is not signed by {role}, the only role allowed to; check the product, variant, architecture "
            "and channel of this device."
        )


class BuildsRefusedError(TrustError):
    """An image made on demand, on a device that did not opt in."""

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is an image made on demand, which this device refuses; set `accept_builds = true` in its "
            "configuration to allow them."
        )


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
