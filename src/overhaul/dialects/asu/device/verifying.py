"""Whether a fetched image is the one that was asked for: its digest, and who signed it for which request."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from overhaul.dialects.asu.device.service import Finished, Http, Wanted
from overhaul.errors import InputError, TrustError
from overhaul.transfer.fetcher import RefusedStatusError
from overhaul.trust.usign import UsignPublicKey, parse_public_key, verify_usign

#: Part of every image without being asked for.
_BUILT_IN = frozenset({"libc", "kernel", "libgcc", "libgcc1", "librt", "libpthread"})


class UnsignedImageError(TrustError):
    """A signature that says something else than was asked for."""

    def __init__(self, *, file: str, reason: str) -> None:
        self.file = file
        self.reason = reason
        super().__init__(f"{file} is not installed: {reason}.")


class KeyUnreadableError(InputError):
    """A file of keys that cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The key {path} cannot be read ({reason}); correct `usign_keys`.")


class _SignedFile(msgspec.Struct, frozen=True):
    name: str
    sha256: str


class _SignedRecipe(msgspec.Struct, frozen=True):
    version: str
    target: str
    profile: str = ""
    packages: tuple[str, ...] = ()
    revision: str = ""
    defaults: str = ""
    repositories: tuple[tuple[str, str], ...] = ()
    repository_keys: tuple[str, ...] = ()


class _Statement(msgspec.Struct, frozen=True):
    format: int
    recipe: _SignedRecipe
    files: tuple[_SignedFile, ...]


def load_public_keys(names: Sequence[str]) -> tuple[UsignPublicKey, ...]:
    """Return the keys in files.

    Raises:
        KeyUnreadableError: One cannot be read.
    """
    keys = []
    for name in names:
        try:
            keys.append(parse_public_key(Path(name).read_text()))
        except (OSError, UnicodeDecodeError, InputError) as error:
            raise KeyUnreadableError(path=Path(name), reason=str(error)) from error
    return tuple(keys)


def signed_digest(finished: Finished, wanted: Wanted, keys: tuple[UsignPublicKey, ...], http: Http) -> str:
    """Return the digest of the image that one of `keys` signed for exactly what was `wanted`.

    Raises:
        UsignSignatureError: None of them signed it.
        UnsignedImageError: It was signed for something else, or is not among what was signed.
    """
    statement_bytes = _get(http, f"{finished.directory_url}/build.json")
    signature = _get(http, f"{finished.directory_url}/build.json.sig").decode(errors="replace")
    verify_usign(statement_bytes, signature, keys, name="build.json")
    try:
        statement = msgspec.json.decode(statement_bytes, type=_Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnsignedImageError(
            file=finished.file, reason=f"what is signed about it cannot be read ({error})"
        ) from error
    recipe = statement.recipe
    target = wanted.target.removeprefix("debian/")
    for what, signed, asked in (
        ("version", recipe.version, wanted.version),
        ("target", recipe.target, target),
        ("revision", recipe.revision, wanted.revision),
        ("first-boot script", recipe.defaults, ""),
    ):
        if signed != asked and not (what == "revision" and not signed):
            raise UnsignedImageError(
                file=finished.file, reason=f"it was signed for {what} {signed!r} and {asked!r} was asked for"
            )
    if wanted.distribution == "debian" and recipe.profile != wanted.board:
        raise UnsignedImageError(file=finished.file, reason=f"it was signed for the product {recipe.profile!r}")
    if recipe.repositories or recipe.repository_keys:
        raise UnsignedImageError(file=finished.file, reason="it holds packages of repositories that nobody asked for")
    lacking = sorted(set(wanted.packages) - set(recipe.packages) - _BUILT_IN)
    added = sorted(set(recipe.packages) - set(wanted.packages))
    if lacking or added:
        # A server puts packages in the place of those that exist no longer; whoever owns the device must say yes.
        named = ", ".join([*(f"--add {name}" for name in added), *(f"--remove {name}" for name in lacking)])
        raise UnsignedImageError(
            file=finished.file, reason=f"it was signed for other packages; if you want it so, say {named}"
        )
    for file in statement.files:
        if file.name == finished.file:
            return file.sha256
    raise UnsignedImageError(file=finished.file, reason="it is not among the files that were signed")


def _get(http: Http, url: str) -> bytes:
    answer = http.ask("GET", url)
    if answer.status != 200:
        raise RefusedStatusError(url=url, status=answer.status)
    return answer.body
