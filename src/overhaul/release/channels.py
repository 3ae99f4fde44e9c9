"""The channels of a product, in their order of stability.

A channel is an ordered promise: what stands earlier in the list is more stable. The list is part of a product's
configuration; this module only answers questions about it.
"""

import msgspec

from overhaul.errors import InputError
from overhaul.release.names import Name, check_name


class UnknownChannelError(InputError):
    """A channel that the product's configuration does not list."""

    def __init__(self, *, channel: str, known: tuple[str, ...]) -> None:
        self.channel = channel
        self.known = known
        super().__init__(f"There is no channel {channel!r}; the product has {', '.join(known)}.")


class UnusableChannelsError(InputError):
    """A list of channels that is empty or names one twice."""


class WrongDirectionError(InputError):
    """A promotion that would not lead to a more stable channel."""

    def __init__(self, *, source: str, target: str) -> None:
        self.source = source
        self.target = target
        super().__init__(
            f"Channel {target} is not more stable than {source}: a release is promoted towards the first channel "
            "of the product's list; publish it to the other channel instead."
        )


class Channels(msgspec.Struct, frozen=True):
    """The channels of one product, the most stable first."""

    names: tuple[Name, ...] = ("stable", "beta", "dev")

    def __post_init__(self) -> None:
        for name in self.names:
            check_name("channel", name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise UnusableChannelsError(
                f"The channels of a product are at least one name, each once; the list is [{', '.join(self.names)}]."
            )

    def __contains__(self, channel: object) -> bool:
        return channel in self.names

    def stability(self, channel: str) -> int:
        """Return the place of `channel`, 0 for the most stable; raise `UnknownChannelError` when not listed."""
        if channel not in self.names:
            raise UnknownChannelError(channel=channel, known=self.names)
        return self.names.index(channel)

    def check_promotion(self, *, source: str, target: str) -> None:
        """Raise `WrongDirectionError` unless `target` is more stable than `source`."""
        if self.stability(target) >= self.stability(source):
            raise WrongDirectionError(source=source, target=target)
