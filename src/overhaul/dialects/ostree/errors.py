"""What can be wrong with OSTree's bytes and repositories, for both sides."""

from overhaul.errors import InputError, NetworkError, OperatorError, TrustError


class MalformedOstreeDataError(TrustError):
    """Bytes that are no well-formed object, delta, summary or signature file."""

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"The OSTree {what} is malformed: {reason}; nothing of it was used, publish it again.")


class WrongChecksumError(TrustError):
    """An object whose bytes are not those its name promises."""

    def __init__(self, *, what: str, expected: str, actual: str) -> None:
        self.what = what
        self.expected = expected
        self.actual = actual
        super().__init__(f"The OSTree {what} is corrupt: expected {expected}, found {actual}; publish it again.")


class UnsignedOstreeError(TrustError):
    """Something that must be signed and is not, or not by a key that is trusted."""

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"The OSTree {what} is not trusted: {reason}; sign it with a key that its users have.")


class BadRefNameError(InputError):
    """A branch or remote name that OSTree does not take."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name!r} is no OSTree ref; write components of letters, digits, '.', '_' and '-' joined by '/'."
        )


class MissingOstreeObjectError(OperatorError):
    """An object that a repository should have and has not."""

    def __init__(self, *, repository: str, name: str) -> None:
        self.repository = repository
        self.name = name
        super().__init__(
            f"The OSTree repository {repository} has no {name}; run `ostree fsck` there and pull it again."
        )


class DeltaSourceMissingError(NetworkError):
    """A delta that asks for an object that is not here; the objects themselves can still be fetched."""

    def __init__(self, *, checksum: str) -> None:
        self.checksum = checksum
        super().__init__(f"The static delta needs the object {checksum}, which is not here; pull without deltas.")
