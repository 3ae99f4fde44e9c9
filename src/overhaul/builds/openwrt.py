"""The builder of OpenWrt images: an ImageBuilder of upstream, run as its makers run it, in the sandbox.

Each build works in a copy of its own, so nothing a package's script does reaches the next build. What the copy is
given (keys, repositories, a first-boot script) is written before any of its code runs.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.builds.builder import Built, MadeImage, Workplace
from overhaul.builds.imagebuilders import ImageBuilders
from overhaul.builds.make_output import (
    command_packages,
    package_problems,
    parse_info,
    parse_manifest,
    problem_text,
)
from overhaul.builds.recipe import InvalidRecipeError, Recipe
from overhaul.builds.results import BuildFailedError, BuildFailure, FailureKind, Phase
from overhaul.builds.sandbox import Ended, Limits, Sandbox
from overhaul.host.files import replace_bytes

_BUILDER = "/builder"
_OPKG_TAIL = "src imagebuilder file:packages\noption check_signature\n"
_MAX_DOCUMENT_BYTES = 16 << 20
_TOO_BIG = ("is too big", "are too big", "out of space?")


class _Image(msgspec.Struct, frozen=True):
    name: str
    type: str
    filesystem: str = ""


class _Profile(msgspec.Struct, frozen=True):
    images: tuple[_Image, ...] = ()


class _Document(msgspec.Struct, frozen=True):
    profiles: dict[str, _Profile]


@dataclass(frozen=True, kw_only=True)
class OpenWrtBuilder:
    """Makes images of OpenWrt and its descendants."""

    imagebuilders: ImageBuilders
    limits: Limits
    #: Whether the ImageBuilder may fetch packages; only in the steps that do.
    network: bool = True
    name: str = "openwrt"

    def build(self, recipe: Recipe, place: Workplace) -> Built:
        """Make the image of `recipe` in `place`."""
        return _Run(self, recipe, place).build()


class _Run:
    def __init__(self, builder: OpenWrtBuilder, recipe: Recipe, place: Workplace) -> None:
        self._builder = builder
        self._recipe = recipe
        self._place = place
        self._watcher = place.watcher
        self._copy = place.directory / "builder"
        self._outputs = self._copy / place.artefact

    def build(self) -> Built:
        recipe = self._recipe
        self._watcher.phase(Phase.CONTAINER_SETUP)
        imagebuilder = self._builder.imagebuilders.open(recipe.version, recipe.target, self._watcher)
        self._set_up(imagebuilder.directory)

        self._watcher.phase(Phase.VALIDATE_REVISION)
        info = parse_info(_text(self._make("info").stdout))
        if recipe.revision and info.revision != recipe.revision:
            detail = f"Received incorrect version {info.revision} (requested {recipe.revision})"
            raise _failed(FailureKind.WRONG_REVISION, detail)
        packages = command_packages(info, recipe.profile, recipe.packages, is_whole=recipe.diff_packages)

        self._watcher.phase(Phase.VALIDATE_MANIFEST)
        selection = (f"PROFILE={recipe.profile}", f"PACKAGES={' '.join(packages)}")
        printed = self._make("manifest", *selection, "STRIP_ABI=1", network=self._builder.network)
        if printed.status != 0:
            missing, conflicts = package_problems(_text(printed.stderr))
            detail = problem_text(missing, conflicts)
            raise _failed(FailureKind.IMPOSSIBLE_PACKAGES, detail, printed, missing=missing, conflicts=conflicts)
        manifest = parse_manifest(_text(printed.stdout))
        _check_versions(recipe, manifest)

        self._watcher.phase(Phase.BUILDING_IMAGE)
        arguments = self._image_arguments(selection, manifest, printed.stdout)
        made = self._make("image", *arguments, network=self._builder.network)
        if any(words in _text(made.stderr) for words in _TOO_BIG):
            raise _failed(FailureKind.TOO_BIG, "Selected packages exceed device storage", made)
        if made.status != 0:
            raise _failed(FailureKind.BUILD_FAILED, "Error while building firmware. See stdout/stderr", made)
        document, images = self._document(made)
        return Built(
            outputs=self._outputs,
            images=images,
            manifest=manifest,
            manifest_text=printed.stdout,
            builder_digest=imagebuilder.digest,
            document=document,
            command=("make", "image", *arguments),
            command_packages=packages,
            stdout=_text(made.stdout),
            stderr=_text(made.stderr),
        )

    def _make(self, goal: str, *arguments: str, network: bool = False) -> Ended:
        place = Sandbox(writable={_BUILDER: self._copy}, network=network, limits=self._builder.limits)
        return place.run(["make", goal, *arguments], directory=_BUILDER, follower=self._watcher)

    def _set_up(self, imagebuilder: Path) -> None:
        self._copy.mkdir()
        place = Sandbox(
            read_only={"/imagebuilder": imagebuilder}, writable={_BUILDER: self._copy}, limits=self._builder.limits
        )
        command = ["cp", "--archive", "--no-preserve=ownership", "--reflink=auto", "/imagebuilder/.", f"{_BUILDER}/"]
        ended = place.run(command, directory=_BUILDER, follower=self._watcher)
        if ended.status != 0:
            detail = f"Could not set up ImageBuilder (returncode={ended.status})"
            raise _failed(FailureKind.SETUP_FAILED, detail, ended)
        self._write_repositories()
        for number, key in enumerate(self._recipe.repository_keys):
            name, text = _key_file(key, number)
            self._write(f"keys/{name}", text)
        if self._recipe.defaults:
            self._write(f"asu-files/etc/uci-defaults/{_defaults_name(self._recipe)}", self._recipe.defaults)

    def _write_repositories(self) -> None:
        recipe = self._recipe
        if not recipe.repositories:
            return
        is_apk = (self._copy / "repositories").exists()
        file = self._copy / ("repositories" if is_apk else "repositories.conf")
        lines = []
        if recipe.repositories_mode == "append" and file.exists():
            lines = file.read_text().splitlines()
        for name, url in sorted(recipe.repositories):
            lines.append(url if is_apk else f"src/gz {name} {url}")
        if not is_apk:
            lines += [line for line in _OPKG_TAIL.splitlines() if line not in lines]
        replace_bytes(file, ("\n".join(lines) + "\n").encode())

    def _write(self, name: str, text: str) -> None:
        path = self._copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _image_arguments(
        self, selection: tuple[str, str], manifest: Mapping[str, str], manifest_text: bytes
    ) -> tuple[str, ...]:
        recipe = self._recipe
        if recipe.naming == "packages":
            extra = hashlib.sha256(" ".join(sorted(manifest)).encode()).hexdigest()[:12]
        else:
            extra = hashlib.sha256(manifest_text).hexdigest()[:15]
            if recipe.defaults:
                extra += "-" + hashlib.sha256(recipe.defaults.encode()).hexdigest()[:6]
        arguments = [*selection, f"EXTRA_IMAGE_NAME={extra}", f"BIN_DIR={_BUILDER}/{self._place.artefact}"]
        if recipe.defaults:
            arguments.append(f"FILES={_BUILDER}/asu-files")
        if recipe.rootfs_size_mb is not None:
            arguments.append(f"ROOTFS_PARTSIZE={recipe.rootfs_size_mb}")
        if recipe.filesystem is not None:
            arguments.append(f"ROOTFS_FILESYSTEM={recipe.filesystem}")
        return tuple(arguments)

    def _document(self, made: Ended) -> tuple[dict[str, object], tuple[MadeImage, ...]]:
        """Return what `profiles.json` says of the device, and its images that are there."""
        path = self._outputs / "profiles.json"
        if (
            self._outputs.is_symlink()
            or path.is_symlink()
            or not path.is_file()
            or path.stat().st_size > _MAX_DOCUMENT_BYTES
        ):
            raise _failed(FailureKind.NO_DOCUMENT, "No JSON file found", made)
        data = path.read_bytes()
        try:
            whole = msgspec.json.decode(data, type=dict[str, object])
            known = msgspec.json.decode(data, type=_Document)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise _failed(FailureKind.NO_DOCUMENT, "No JSON file found", made) from error
        profile = known.profiles.get(self._recipe.profile)
        profiles = whole.pop("profiles")
        if profile is None or not isinstance(profiles, dict):
            raise _failed(FailureKind.UNKNOWN_PROFILE, "Profile not found in JSON file", made)
        images = tuple(
            MadeImage(name=image.name, type=image.type, filesystem=image.filesystem)
            for image in profile.images
            if "/" not in image.name and (self._outputs / image.name).is_file()
        )
        return {**whole, **profiles[self._recipe.profile], "id": self._recipe.profile}, images


def _check_versions(recipe: Recipe, manifest: Mapping[str, str]) -> None:
    for package, wanted in recipe.package_versions:
        if package not in manifest:
            detail = f"Impossible package selection: {package} not in manifest"
            raise _failed(FailureKind.PACKAGE_VERSION, detail, missing=(package,))
        if manifest[package] != wanted:
            detail = f"{package} version not as requested: {wanted} vs. {manifest[package]}"
            raise _failed(FailureKind.PACKAGE_VERSION, f"Impossible package selection: {detail}", missing=(package,))


def _defaults_name(recipe: Recipe) -> str:
    return "99-asu-defaults" if recipe.naming == "packages" else "99-server-defaults"


def _key_file(text: str, number: int) -> tuple[str, str]:
    """Return the name under which an ImageBuilder trusts the key in `text`, and its content."""
    if text.startswith("-----BEGIN"):
        return f"custom-{number}.pem", text
    lines = text.strip().splitlines()
    try:
        data = base64.b64decode(lines[-1], validate=True)
    except (IndexError, binascii.Error, ValueError) as error:
        raise InvalidRecipeError(field="repository key", value=text, reason="it is no PEM and no usign key") from error
    if len(data) != 42:
        raise InvalidRecipeError(field="repository key", value=text, reason="it is no PEM and no usign key")
    return data[2:10].hex(), f"untrusted comment: {data[2:10].hex()}\n{lines[-1]}\n"


def _failed(
    kind: FailureKind,
    detail: str,
    ended: Ended | None = None,
    *,
    missing: tuple[str, ...] = (),
    conflicts: tuple[str, ...] = (),
) -> BuildFailedError:
    failure = BuildFailure(kind=kind, detail=detail, missing=missing, conflicts=conflicts)
    if ended is not None:
        failure = msgspec.structs.replace(failure, stdout=_text(ended.stdout), stderr=_text(ended.stderr))
    return BuildFailedError(failure)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
