"""What can be wrong with a delta, or with an image a delta is asked of."""

from overhaul.errors import InputError, OperatorError, TrustError


class MalformedDeltaError(TrustError):
    """The bytes are not a delta, contradict themselves or their digest, or ask for more than a device grants."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The delta cannot be used: {reason}. Publish the release again.")


class UnknownCoderError(MalformedDeltaError):
    """The delta needs a coder this version does not have."""

    def __init__(self, coder: str) -> None:
        self.coder = coder
        super().__init__(f"it needs the coder {coder!r}, which is unknown here (update Overhaul first)")


class UnsuitableImageError(InputError):
    """The image is not one whose files can be found, so no delta is made of it."""

    def __init__(self, *, image: str, reason: str) -> None:
        self.image = image
        self.reason = reason
        super().__init__(
            f"No delta can be made of {image}: {reason}. Use a plain ext4 image, or publish without delta."
        )


class MatcherMissingError(OperatorError):
    """The library that finds what two files have in common is not installed."""

    def __init__(self) -> None:
        super().__init__("Deltas are made with hdiffpatch, which is not installed: install overhaul[publish].")
