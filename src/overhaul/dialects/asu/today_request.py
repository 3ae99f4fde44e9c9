"""A build request of today's interface, checked field by field at the edge.

Unknown keys are ignored, as clients of other versions send them. What is wrong becomes the list of errors that
clients know: type, place, message and input of each.
"""

from typing import Annotated, Any, Literal

import msgspec
import pydantic
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from overhaul.dialects.asu import names
from overhaul.dialects.asu.hashes import today_request_hash
from overhaul.dialects.asu.settings import AsuSettings
from overhaul.errors import InputError

# pydantic's own engine reads `$` as the end of the text and of nothing else; Python's would allow a line feed behind.
_Token = Annotated[str, StringConstraints(pattern=f"^{names.TOKEN}$")]
_Package = Annotated[str, StringConstraints(pattern=f"^{names.PACKAGE}$")]
_PackageVersion = Annotated[str, StringConstraints(pattern=f"^{names.PACKAGE_VERSION}$")]
_Target = Annotated[str, StringConstraints(pattern=f"^{names.TARGET}$")]
_RepositoryName = Annotated[str, StringConstraints(pattern=f"^{names.REPOSITORY_NAME}$")]
_RepositoryURL = Annotated[str, StringConstraints(pattern=f"^{names.REPOSITORY_URL}$")]

_MAX_PACKAGES = 1000
_MAX_REPOSITORIES = 16
#: Of what a client sent, so much is sent back to show what was wrong with it.
_SHOWN_INPUT = 200
_SHOWN_ERRORS = 20

#: Clients know these as Python says them, not as JSON does.
_MESSAGES = {
    "list_type": "Input should be a valid list",
    "dict_type": "Input should be a valid dictionary",
}

Filesystem = Literal["squashfs", "ext4", "ubifs", "erofs", "jffs2", "jffs2-nand", "targz", "cpiogz"]


class BuildRequest(BaseModel):
    """The request; made by `request_model`, which knows the server's limits."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    distro: _Token = "openwrt"
    version: _Token
    version_code: _Token = ""
    target: _Target
    profile: _Token
    packages: Annotated[list[_Package], Field(max_length=_MAX_PACKAGES)] = []
    packages_versions: Annotated[dict[_Package, _PackageVersion], Field(max_length=_MAX_PACKAGES)] = {}
    diff_packages: bool = False
    defaults: str | None = None
    rootfs_size_mb: int | None = None
    filesystem: Filesystem | None = None
    repositories: Annotated[dict[_RepositoryName, _RepositoryURL], Field(max_length=_MAX_REPOSITORIES)] = {}
    repositories_mode: Literal["append", "replace"] = "replace"
    repository_keys: Annotated[
        list[Annotated[str, StringConstraints(max_length=8192)]], Field(max_length=_MAX_REPOSITORIES)
    ] = []
    client: Annotated[str, StringConstraints(max_length=200)] | None = None

    @property
    def board(self) -> str:
        """The device as build systems write it."""
        return names.underscored(self.profile)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The packages asked for, in the client's order."""
        return tuple(name.removeprefix("+") for name in self.packages_versions or self.packages)

    def request_hash(self) -> str:
        """Return the public name of this request."""
        return today_request_hash(
            distro=self.distro,
            version=self.version,
            version_code=self.version_code,
            target=self.target,
            profile=self.board,
            packages=self.packages,
            packages_versions=self.packages_versions,
            diff_packages=self.diff_packages,
            filesystem=self.filesystem,
            defaults=self.defaults,
            rootfs_size_mb=self.rootfs_size_mb,
            repository_keys=self.repository_keys,
            repositories=self.repositories,
            repositories_mode=self.repositories_mode,
        )


def request_model(settings: AsuSettings) -> type[BuildRequest]:
    """Return the request with the limits of one server."""
    defaults = Annotated[str, StringConstraints(max_length=settings.max_defaults_length)] | None
    rootfs = Annotated[int, Field(ge=1, le=settings.max_custom_rootfs_size_mb)] | None
    made: type[BuildRequest] = pydantic.create_model(
        "BuildRequest", __base__=BuildRequest, defaults=(defaults, None), rootfs_size_mb=(rootfs, None)
    )
    return made


class InvalidRequestError(InputError):
    """A body that is no build request: the answer for it, and the packages to name in its header."""

    http_status = 422

    def __init__(self, *, errors: list[dict[str, Any]], packages: tuple[str, ...]) -> None:
        self.errors = errors
        self.packages = packages
        super().__init__("The body is no build request; `detail` names what is wrong with which field.")

    @property
    def body(self) -> bytes:
        """The answer."""
        return msgspec.json.encode({"detail": self.errors})


def parse_request(model: type[BuildRequest], body: bytes) -> BuildRequest:
    """Return the request in `body`, whatever type the client called it.

    Raises:
        InvalidRequestError: It is none.
    """
    if not body.strip():
        raise _invalid([{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}])
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _invalid(
            [
                {
                    "type": one["type"],
                    "loc": ["body", *one["loc"]],
                    "msg": _MESSAGES.get(one["type"], one["msg"]),
                    "input": _shown(one["input"]),
                    **({"ctx": {key: str(value) for key, value in one["ctx"].items()}} if "ctx" in one else {}),
                }
                for one in error.errors(include_url=False)[:_SHOWN_ERRORS]
            ]
        ) from None


def _invalid(errors: list[dict[str, Any]]) -> InvalidRequestError:
    packages = tuple(
        error["input"]
        for error in errors
        if len(error["loc"]) > 2
        and error["loc"][1:2] in (["packages"], ["packages_versions"])
        and isinstance(error["input"], str)
    )
    return InvalidRequestError(errors=errors, packages=packages)


def _shown(value: object) -> object:
    """Return so much of what a client sent as helps to find the mistake."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()[:_SHOWN_INPUT]
    if isinstance(value, bytes):
        return value.decode(errors="replace")[:_SHOWN_INPUT]
    if value is None or isinstance(value, bool):
        return value
    return str(value).encode(errors="replace").decode()[:_SHOWN_INPUT]
