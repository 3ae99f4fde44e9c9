"""What is signed about a build, and what is checked before: by a process that never ran it.

The worker claims; the signer believes nothing but the queue's record of the request, what upstream signs, and the
bytes of the files. It recomputes the recipe's key, the builder's digest, the manifest and every file's digest, and
signs two texts:

```
sha256sums  + sha256sums.sig     the files, as every tool reads them
build.json  + build.json.sig     the same files bound to recipe, builder and manifest (`Statement`)
```

`sha256sums` alone would say nothing about what the image was asked to be, so an artefact could be served for another
request; who can, checks `build.json`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from overhaul.builds.make_output import parse_manifest
from overhaul.builds.queue import BuildQueue
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.results import ArtefactFile, PublishedRelease
from overhaul.builds.store import checksums_text, list_outputs
from overhaul.errors import TrustError
from overhaul.trust.usign import UsignSecretKey

STATEMENT_FORMAT = 1
SUMS = "sha256sums"
STATEMENT = "build.json"
#: Written from what the signer returns, so no build may bring files of these names.
RESERVED_NAMES = frozenset({f"{SUMS}.sig", STATEMENT, f"{STATEMENT}.sig"})


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says it has built."""

    build_id: int
    recipe_key: str
    builder_digest: str
    #: The manifest as the builder printed it.
    manifest_text: str
    #: Directory of the files, which the signer reads itself.
    directory: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What a signature on `build.json` says."""

    format: int
    artefact: str
    recipe: Recipe
    recipe_key: str
    builder_digest: str
    manifest_sha256: str
    files: tuple[ArtefactFile, ...]


class Signatures(msgspec.Struct, frozen=True, kw_only=True):
    """What the signer answers; the worker writes it beside the files."""

    sums: str
    sums_signature: str
    statement: str
    statement_signature: str
    #: The release of our own repository that it was published as, where that is done.
    release: PublishedRelease | None = None


class RefusedClaimError(TrustError):
    """A worker claims what is not so."""

    def __init__(self, *, build_id: int, reason: str) -> None:
        self.build_id = build_id
        self.reason = reason
        super().__init__(f"Build {build_id} was not signed: {reason}. Look at the worker that made it.")


class Signer(Protocol):
    """Anything that signs builds."""

    def sign(self, claim: Claim) -> Signatures:
        """Return the signatures of what `claim` is about; raise `RefusedClaimError` when it is not so."""


class Expectation(Protocol):
    """What a builder must have been made of, found out without any worker."""

    def builder_digests(self, recipe: Recipe) -> frozenset[str]:
        """Return the digests a builder of `recipe` can have had in the last days."""

    def manifest(self, recipe: Recipe) -> Mapping[str, str] | None:
        """Return the manifest when it follows from signed archives; None when only the builder knows it."""


@dataclass(frozen=True, kw_only=True)
class KeySigner:
    """Signs with a usign key in this process. Run it in one that runs no builds (`signer_process`)."""

    key: UsignSecretKey
    queue: BuildQueue
    #: Builder -> what it must have been made of.
    expectations: Mapping[str, Expectation]
    #: Directories that claims may name.
    incoming: Path
    #: Given the path below `builds/` and the bytes of each statement, to sign them in a repository too.
    record_statement: Callable[[str, bytes], None] | None = None
    #: Given a build that was found right and its directory, to publish its image where our own devices look. It
    #: comes from above this room, and runs here because here the keys are.
    publish: Callable[[BuildRecord, Path], PublishedRelease | None] | None = None

    def sign(self, claim: Claim) -> Signatures:
        """Return the signatures of what `claim` is about."""
        build = self.queue.find(claim.build_id)
        files = self._files(claim, build)
        check_claim(claim, build, self.expectations)
        statement = msgspec.json.encode(
            Statement(
                format=STATEMENT_FORMAT,
                artefact=build.name,
                recipe=build.recipe,
                recipe_key=build.recipe.key,
                builder_digest=claim.builder_digest,
                manifest_sha256=hashlib.sha256(claim.manifest_text.encode()).hexdigest(),
                files=files,
            )
        )
        if self.record_statement is not None:
            self.record_statement(f"builds/{build.name}/{STATEMENT}", statement)
        sums = checksums_text({file.name: file.sha256 for file in files if file.name != SUMS})
        return Signatures(
            sums=sums,
            sums_signature=self.key.sign(sums.encode()),
            statement=statement.decode(),
            statement_signature=self.key.sign(statement),
            release=None if self.publish is None else self.publish(build, Path(claim.directory)),
        )

    def _files(self, claim: Claim, build: BuildRecord) -> tuple[ArtefactFile, ...]:
        directory = Path(claim.directory)
        inside = directory.parent == self.incoming and directory.name.startswith(f"{build.name}.")
        if not inside or directory.is_symlink():
            raise RefusedClaimError(build_id=claim.build_id, reason="its files are not where new artefacts lie")
        files = tuple(file for file in list_outputs(directory) if file.name != SUMS)
        if not files or any(file.name in RESERVED_NAMES for file in files):
            raise RefusedClaimError(build_id=claim.build_id, reason="it brings no files, or signatures of its own")
        _check_listed_digests(claim, directory, files)
        return files


def check_claim(claim: Claim, build: BuildRecord, expectations: Mapping[str, Expectation]) -> None:
    """Raise `RefusedClaimError` unless `claim` agrees with the request and with what upstream signs."""
    recipe = build.recipe

    def refuse(reason: str) -> None:
        raise RefusedClaimError(build_id=claim.build_id, reason=reason)

    if build.state is not BuildState.STARTED:
        refuse(f"it is {build.state} and not being built")
    if not claim.recipe_key == recipe.key == build.recipe_key:
        refuse("it was made by another recipe than was asked for")
    expectation = expectations.get(recipe.builder)
    if expectation is None or claim.builder_digest not in expectation.builder_digests(recipe):
        refuse(f"the {recipe.builder} builder it was made with ({claim.builder_digest[:12]}) is none that is signed")
        return
    manifest = parse_manifest(claim.manifest_text)
    expected = expectation.manifest(recipe)
    if expected is not None and manifest != expected:
        differing = sorted(name for name in {*manifest, *expected} if manifest.get(name) != expected.get(name))
        refuse(f"its manifest differs from the signed archives in {', '.join(differing[:5])}")
    for package in recipe.packages:
        if package.startswith("-") and package[1:] in manifest:
            refuse(f"its manifest has {package[1:]}, which was to be taken away")
        if not package.startswith("-") and package not in manifest:
            refuse(f"its manifest lacks {package}")
    for package, version in recipe.package_versions:
        if manifest.get(package) != version:
            refuse(f"its manifest does not have {package} {version}")


class _ListedImage(msgspec.Struct, frozen=True):
    name: str
    sha256: str = ""


class _ListedProfile(msgspec.Struct, frozen=True):
    images: tuple[_ListedImage, ...] = ()


class _Listed(msgspec.Struct, frozen=True):
    profiles: dict[str, _ListedProfile]


def _check_listed_digests(claim: Claim, directory: Path, files: tuple[ArtefactFile, ...]) -> None:
    """Refuse images that are not those that the builder's own document lists."""
    digests = {file.name: file.sha256 for file in files}
    if "profiles.json" not in digests:
        return
    try:
        listed = msgspec.json.decode((directory / "profiles.json").read_bytes(), type=_Listed)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RefusedClaimError(build_id=claim.build_id, reason="its profiles.json cannot be read") from error
    for profile in listed.profiles.values():
        for image in profile.images:
            if image.sha256 and digests.get(image.name, image.sha256) != image.sha256:
                reason = f"{image.name} is not the file that its profiles.json lists"
                raise RefusedClaimError(build_id=claim.build_id, reason=reason)
