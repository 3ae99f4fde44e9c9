"""What a device knows about itself when it decides; none of it leaves the device.

As JSON this is one object with the fields of `DeviceFacts`, for example

    {"product": "weather", "variant": "lite", "arch": "amd64", "channel": "stable",
     "version": "1.0", "build_id": "20240101", "hardware": {"board": "rpi4", "memory_mb": "2048"},
     "rollout_id": "f4c1b8…", "refused": [["1.1", "20240201"]]}
"""

from typing import Annotated

import msgspec

from overhaul.errors import InputError
from overhaul.release.names import Name, Token

FactName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_.]{0,63}\Z")]
FactValue = Annotated[str, msgspec.Meta(max_length=256)]


class UnreadableFactsError(InputError):
    """A document that should hold a device's facts and does not."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The device facts cannot be read ({reason}); `overhaul explain --help` shows an example.")


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One device: what it runs, what it follows, what it is made of, and what it will not take again."""

    product: Name
    variant: Name
    arch: Name
    channel: Name
    version: Token
    build_id: Token
    #: Coarse facts such as `board`, `vendor`, `model`, `cpu`, `firmware`, `memory_mb`; a fact that could not be
    #: found out is left out, never set to an empty text.
    hardware: dict[FactName, FactValue] = {}
    #: A random text made once on the device; it decides the device's place in every rollout.
    rollout_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    #: (version, build id) of releases that failed here and were rolled back.
    refused: tuple[tuple[Token, Token], ...] = ()
    #: The highest minimum version that was signed for it so far, whatever the policy says now (see `policy.floors`).
    minimum: Token | None = None


def encode_facts(facts: DeviceFacts) -> bytes:
    """Return the JSON bytes of `facts`."""
    return msgspec.json.format(msgspec.json.encode(facts, order="sorted"), indent=1) + b"\n"


def decode_facts(data: bytes) -> DeviceFacts:
    """Return the facts held in `data`; raise `UnreadableFactsError` when it holds none."""
    try:
        return msgspec.json.decode(data, type=DeviceFacts)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnreadableFactsError(str(error)) from error
