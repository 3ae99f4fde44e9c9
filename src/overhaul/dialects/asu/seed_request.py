"""Requests of the seed era (2018 and 2019): plain JSON under any type, every field optional until it is needed."""

import msgspec

from overhaul.dialects.asu import hashes
from overhaul.dialects.asu.names import is_package
from overhaul.errors import InputError

_MAX_PACKAGES = 1000
_MAX_TEXT = 200


class MalformedError(InputError):
    """A body that is no request at all."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The body is no request: {reason}.")


class SeedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What clients send to upgrade-check, upgrade-request and build-request; values as they were sent."""

    distro: str | None = None
    version: str | None = None
    target: str | None = None
    board: str | None = None
    model: str | None = None
    revision: str | None = None
    #: Asks for what is known under a name, and for nothing else.
    request_hash: str | None = None
    installed: dict[str, str] | None = None
    upgrade_packages: bool | int = False
    packages: list[str] | dict[str, str] | None = None
    defaults: str | None = None

    @property
    def profile(self) -> str:
        """The device as build systems write it."""
        return (self.board or "").replace(",", "_")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The packages asked for; some clients send them with versions."""
        return tuple(self.packages or ())

    def digest(self) -> str:
        """Return the full digest whose first digits are the request's name."""
        return hashes.text_hash(
            " ".join(
                (
                    self.distro or "",
                    self.version or "",
                    self.target or "",
                    self.profile,
                    hashes.seed_defaults_hash(self.defaults) if self.defaults else "",
                    hashes.seed_packages_hash(self.wanted) if self.wanted else "",
                )
            )
        )


_DECODER = msgspec.json.Decoder(SeedRequest)


def parse_seed_request(body: bytes) -> SeedRequest:
    """Return the request in `body`, whatever its type is called.

    Raises:
        MalformedError: It is none.
    """
    try:
        request = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)) from error
    texts = (request.distro, request.version, request.target, request.board, request.model, request.revision)
    for text in texts:
        if text is not None and (len(text) > _MAX_TEXT or not text.isprintable()):
            raise MalformedError("a field is too long or holds characters that no name has")
    if len(request.wanted) + len(request.installed or ()) > _MAX_PACKAGES:
        raise MalformedError(f"it names more than {_MAX_PACKAGES} packages")
    return request


def unnameable(packages: tuple[str, ...]) -> list[str]:
    """Return what cannot be a package's name, once a leading `-` is taken away."""
    return [name for name in packages if not is_package(name.removeprefix("-"))]
