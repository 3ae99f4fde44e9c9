"""The policy of a channel: the signed document from which every device decides by itself.

A policy is a TUF target, `PRODUCT/policy/CHANNEL.json`, signed by the delegated policy key. It says which releases
the channel holds and what must be true before a device moves to one of them. It lists no bytes, so the worst a thief
of its key can do is to choose badly among releases that the product's key has signed; and it names the digests of
each release's image and configuration, so the worst a thief of the product's key can do is to make devices refuse a
release.

A `Policy` is checked when it is made: no release stands in it twice, not even in two spellings, and everything is
bounded. Readers ignore fields they do not know, so a later version may add what merely informs; whatever
restricts what a device may install needs a new format number. `policy.edit` makes changed policies and
`policy.selection` decides; `docs/reference/policy.md` describes the JSON for people.
"""

from typing import Annotated

import msgspec

from overhaul.errors import InputError, TrustError
from overhaul.policy.hardware import HardwareRules
from overhaul.policy.rollout import Rollout, UnixTime
from overhaul.release.names import Name, Sha256, Token
from overhaul.release.record import ReleaseId
from overhaul.release.versions import ReleaseOrder, release_order_key

#: Version of the policy format that this code writes.
POLICY_FORMAT = 1
#: A channel holds at most this many releases and floors, and its document at most this many bytes.
MAX_ENTRIES = 4096
MAX_FLOORS = 1024
MAX_POLICY_BYTES = 4 << 20

#: (version, build id): what names a release among those of one product, variant and arch.
VersionAndBuild = tuple[Token, Token]


class UnreadablePolicyError(TrustError):
    """Bytes that should be a policy and are none this version understands."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The policy cannot be used ({reason}); publish it again, or update Overhaul first.")


class UnusablePolicyError(InputError):
    """A policy that contradicts itself or exceeds what a device is ready to read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The policy cannot be written: {reason}.")


class Recall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why and since when a release is not offered any more.

    It is in force as soon as the policy is signed, whatever a device's clock says.
    """

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    since: UnixTime
    #: Devices that run it may go back to an older release when there is no newer one for them.
    allow_lower: bool = False
    #: For a checkpoint: another checkpoint of the same variant and arch that stands in for it. Without one, devices
    #: that have not passed the recalled checkpoint wait below it.
    replaced_by: VersionAndBuild | None = None

    @property
    def sentence_end(self) -> str:
        """The reason without the full stop that some people write behind it."""
        return self.reason.rstrip(". ")


class PolicyEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One release in the channel and what must be true before a device moves to it."""

    variant: Name
    arch: Name
    version: Token
    build_id: Token
    #: The digest of its image's index: a record that holds another image is refused. None in entries that an earlier
    #: Overhaul wrote, until the release is published again.
    index_sha256: Sha256 | None = None
    #: The digest of the header of what it ships as configuration: a record that tells another is refused, and where
    #: none is listed beside an image, what the record tells is not merged into a device's own.
    configuration_sha256: Sha256 | None = None
    #: Devices below it must stop here before they go on.
    checkpoint: bool = False
    #: The part of the devices it is open to; None means all of them.
    rollout: Rollout | None = None
    #: The hardware it is meant for; None means any.
    hardware: HardwareRules | None = None
    recall: Recall | None = None
    #: The lowest version a device may come from.
    requires: Token | None = None
    #: A device need not wait for its maintenance window.
    urgent: bool = False
    #: Where a person reads what is new.
    notes_url: Annotated[str, msgspec.Meta(max_length=1024)] = ""

    @property
    def order(self) -> ReleaseOrder:
        """Its place among the releases of its variant and arch."""
        return release_order_key(self.version, self.build_id)

    @property
    def name(self) -> str:
        """Its version and build id, as people read them."""
        return f"{self.version} ({self.build_id})"

    def release_id(self, product: str) -> ReleaseId:
        """Return what names the release in `product`."""
        return ReleaseId(
            product=product, variant=self.variant, arch=self.arch, version=self.version, build_id=self.build_id
        )


class Floor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The two lower bounds of one variant and arch; both are versions, without build ids."""

    variant: Name
    arch: Name
    #: The lowest version that is still supported: what devices on it and above need is kept published.
    support: Token | None = None
    #: The lowest version that may be installed, also by a recall that allows to go back.
    minimum: Token | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel offers, to whom, at one revision."""

    format: int = POLICY_FORMAT
    product: Name
    channel: Name
    #: Rises by one with every change.
    revision: Annotated[int, msgspec.Meta(ge=1)]
    signed_at: UnixTime
    floors: Annotated[tuple[Floor, ...], msgspec.Meta(max_length=MAX_FLOORS)] = ()
    entries: Annotated[tuple[PolicyEntry, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_ENTRIES or len(self.floors) > MAX_FLOORS:
            raise UnusablePolicyError(
                f"{len(self.entries)} releases and {len(self.floors)} floors are more than a channel may hold "
                f"({MAX_ENTRIES} and {MAX_FLOORS}); drop releases that nobody should move to any more"
            )
        places: dict[tuple[str, str, ReleaseOrder], PolicyEntry] = {}
        for entry in self.entries:
            twin = places.setdefault((entry.variant, entry.arch, entry.order), entry)
            if twin is not entry:
                raise UnusablePolicyError(
                    f"{entry.variant}/{entry.arch} {entry.name} and {twin.name} have the same place in the order"
                )
        if len({(floor.variant, floor.arch) for floor in self.floors}) != len(self.floors):
            raise UnusablePolicyError("a variant and arch has two floors")

    def entry(self, release: ReleaseId) -> PolicyEntry | None:
        """Return the entry of `release`, or None when the channel does not hold it."""
        return next((entry for entry in self.entries if entry.release_id(self.product) == release), None)

    def entries_for(self, *, variant: str, arch: str) -> tuple[PolicyEntry, ...]:
        """Return the entries of one variant and arch, the newest first."""
        matching = (entry for entry in self.entries if (entry.variant, entry.arch) == (variant, arch))
        return tuple(sorted(matching, key=lambda entry: entry.order, reverse=True))

    def floor(self, *, variant: str, arch: str) -> Floor:
        """Return the floor of one variant and arch; it is empty when none was set."""
        found = (floor for floor in self.floors if (floor.variant, floor.arch) == (variant, arch))
        return next(found, Floor(variant=variant, arch=arch))


class _Format(msgspec.Struct):
    """The one field that every format of the policy has."""

    format: int


def policy_target_path(product: str, channel: str) -> str:
    """Return the TUF target path of a channel's policy."""
    return f"{product}/policy/{channel}.json"


def encode_policy(policy: Policy) -> bytes:
    """Return the canonical JSON bytes of a policy: one policy always gives the same bytes.

    Raises:
        UnusablePolicyError: A device would refuse to read it.
    """
    data = msgspec.json.format(msgspec.json.encode(policy, order="sorted"), indent=1) + b"\n"
    try:
        decode_policy(data)
    except UnreadablePolicyError as error:
        raise UnusablePolicyError(error.reason) from error
    return data


def decode_policy(data: bytes) -> Policy:
    """Return the policy held in `data`.

    Raises:
        UnreadablePolicyError: The bytes are not a policy this version understands.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise UnreadablePolicyError(f"it has {len(data)} bytes, more than {MAX_POLICY_BYTES}")
    try:
        written = msgspec.json.decode(data, type=_Format).format
        if written != POLICY_FORMAT:
            raise UnreadablePolicyError(f"its format is {written}, and {POLICY_FORMAT} is the one known here")
        return msgspec.json.decode(data, type=Policy)
    except (msgspec.MsgspecError, InputError, RecursionError, UnicodeError) as error:
        raise UnreadablePolicyError(str(error)) from error
