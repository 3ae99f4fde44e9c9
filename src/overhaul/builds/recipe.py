"""What makes two requests for an image the same: the recipe, its canonical bytes and its key.

A recipe is everything that decides the bytes of an image, checked field by field when it is made, so that nothing
behind it has to ask again whether a name may stand in a command line, a make variable or a path.

The key is the full SHA-256 of the canonical bytes. Every value in them is preceded by its kind and its length, so
no two recipes share them by moving a character from one field to the next, and the order in which a person named
packages does not count. Shorter names that foreign protocols hand out are only names: they lead to a key, and the
canonical bytes are compared whole on every hit (`same_recipe`).

```
b"overhaul recipe 1\\n"  then for each field, in the order of the class:
value := b"n"                                      nothing
       | b"s" length-u64-be bytes                  text (UTF-8), numbers and booleans as text
       | b"l" count-u64-be value...                list
```
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from overhaul.errors import InputError

_MAGIC = b"overhaul recipe 1\n"
#: A name that is at the same time harmless as an argument, as a make variable's word and as a part of a path.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+~-]{0,127}", re.ASCII)
_PACKAGE = re.compile(r"-?[A-Za-z0-9_][A-Za-z0-9_.,+~-]{0,127}", re.ASCII)
_PACKAGE_VERSION = re.compile(r"[A-Za-z0-9_.,+~:-]{1,128}", re.ASCII)
_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?", re.ASCII)
_REPOSITORY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
#: No blanks, no control characters, no quotes, nothing a make file or a list of sources would read as its own.
_REPOSITORY_URL = re.compile(r"https?://[A-Za-z0-9._~:/?@!&*+,;=%\[\]-]{1,1000}", re.ASCII)
_KEY_TEXT = re.compile(r"[\x20-\x7e\n]{1,8192}", re.ASCII)
_MAX_PACKAGES = 2000
_MAX_REPOSITORIES = 32
_MAX_DEFAULTS_BYTES = 1 << 20
_MAX_ROOTFS_MB = 1 << 20

#: How the files of an image are named: by the manifest (2019) or by the packages of the manifest (today).
Naming = Literal["manifest", "packages"]
RepositoriesMode = Literal["append", "replace"]


class InvalidRecipeError(InputError):
    """A value that no recipe can have."""

    def __init__(self, *, field: str, value: str, reason: str) -> None:
        self.field = field
        self.value = value
        self.reason = reason
        super().__init__(f"{field} cannot be {value[:80]!r}: {reason}.")


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an image. Making one checks it; `InvalidRecipeError` names the field that is wrong."""

    #: Which builder makes it: `openwrt` or `debian`.
    builder: str
    #: `openwrt`, `debian`, ... in lower case.
    distribution: str
    #: Release of the distribution; for Debian its suite.
    version: str
    #: Revision that the release must have (`r23809-234f1a2efa`); empty for any.
    revision: str = ""
    #: `ath79/generic`; for Debian the architecture.
    target: str
    #: Device; for Debian the product that the image is published as.
    profile: str
    #: In the order the person named them, which shows in the build command and nowhere else. `-NAME` takes a package
    #: of the defaults away.
    packages: tuple[str, ...] = ()
    #: (package, version) that the manifest must show.
    package_versions: tuple[tuple[str, str], ...] = ()
    #: Whether `packages` is the whole list, so that packages of the defaults which are not in it are removed.
    diff_packages: bool = False
    #: Text of the script run at the first boot; empty for none.
    defaults: str = ""
    filesystem: str | None = None
    rootfs_size_mb: int | None = None
    #: (name, URL) of further package repositories.
    repositories: tuple[tuple[str, str], ...] = ()
    repositories_mode: RepositoriesMode = "replace"
    repository_keys: tuple[str, ...] = ()
    naming: Naming = "packages"

    def __post_init__(self) -> None:
        """Refuse what could mean something else further down."""
        for field in ("builder", "distribution", "version", "profile"):
            _check(field, getattr(self, field), _NAME)
        if self.revision:
            _check("revision", self.revision, _NAME)
        _check("target", self.target, _TARGET)
        if self.filesystem is not None:
            _check("filesystem", self.filesystem, _NAME)
        _check_count("packages", len(self.packages) + len(self.package_versions), _MAX_PACKAGES)
        for package in self.packages:
            _check("package", package, _PACKAGE)
        for package, version in self.package_versions:
            _check("package", package, _NAME)
            _check("package version", version, _PACKAGE_VERSION)
        _check_count("repositories", len(self.repositories) + len(self.repository_keys), _MAX_REPOSITORIES)
        for name, url in self.repositories:
            _check("repository name", name, _REPOSITORY_NAME)
            _check("repository", url, _REPOSITORY_URL)
        for key in self.repository_keys:
            _check("repository key", key, _KEY_TEXT)
        if self.rootfs_size_mb is not None and not 1 <= self.rootfs_size_mb <= _MAX_ROOTFS_MB:
            raise InvalidRecipeError(
                field="rootfs_size_mb", value=str(self.rootfs_size_mb), reason=f"it is 1 to {_MAX_ROOTFS_MB} MB"
            )
        if len(self.defaults.encode(errors="surrogatepass")) > _MAX_DEFAULTS_BYTES or "\0" in self.defaults:
            raise InvalidRecipeError(
                field="defaults", value=self.defaults, reason=f"it is a text of at most {_MAX_DEFAULTS_BYTES} bytes"
            )
        try:
            self.defaults.encode()
        except UnicodeEncodeError as error:
            raise InvalidRecipeError(field="defaults", value=self.defaults, reason="it is no Unicode text") from error

    @property
    def canonical(self) -> bytes:
        """The bytes that decide whether two recipes are the same."""
        unordered = {
            "packages": sorted(set(self.packages)),
            "package_versions": sorted(set(self.package_versions)),
            "repositories": sorted(set(self.repositories)),
        }
        parts = [_MAGIC]
        for field in self.__struct_fields__:
            parts += [_value(field), _value(unordered.get(field, getattr(self, field)))]
        return b"".join(parts)

    @property
    def key(self) -> str:
        """64 hexadecimal digits that stand for the recipe wherever something is looked up by it."""
        return hashlib.sha256(self.canonical).hexdigest()


def same_recipe(one: Recipe, other: Recipe) -> bool:
    """Tell whether both ask for the same image, by all their bytes."""
    return one.canonical == other.canonical


def public_names(digest: str, *, digits: int) -> tuple[str, ...]:
    """Return names for a request with the public digest `digest` (hexadecimal), the wanted one first.

    The others are for the day somebody finds a second request with the same first digits: it is then given a longer
    name, and the first keeps its own.
    """
    return tuple(dict.fromkeys(digest[:count] for count in (digits, digits * 2, len(digest)) if count <= len(digest)))


def encode_recipe(recipe: Recipe) -> str:
    """Return `recipe` as the JSON text that a record keeps."""
    return msgspec.json.encode(recipe).decode()


def decode_recipe(text: str) -> Recipe:
    """Return the recipe of a record."""
    return msgspec.json.decode(text, type=Recipe)


def _check(field: str, value: str, pattern: re.Pattern[str]) -> None:
    # `fullmatch`, because `$` would let a newline at the end pass into a list of sources or a make variable.
    if not pattern.fullmatch(value):
        raise InvalidRecipeError(field=field, value=value, reason="it has a form that no such name has")


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRecipeError(field=field, value=f"{count} entries", reason=f"there may be at most {limit}")


def _value(value: object) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, str):
        data = value.encode()
        return b"s" + struct.pack(">Q", len(data)) + data
    if isinstance(value, Sequence):
        return b"l" + struct.pack(">Q", len(value)) + _values(value)
    return _value(str(value))


def _values(values: Iterable[object]) -> bytes:
    return b"".join(_value(item) for item in values)
