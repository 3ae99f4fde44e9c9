"""RAUC bundles of one image, made and signed by the real `rauc`.

A casync bundle holds no image but its chunk index, `rootfs.img.caibx`; RAUC on the device takes what it has from the
running slot and fetches the other chunks from the store that lies beside the bundle under the same name.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overhaul.host.files import sync_directory
from overhaul.host.processes import run

_IMAGE_NAME = "rootfs.img"
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class BundleSigner:
    """Who signs bundles; PEM files."""

    key: Path
    certificate: Path
    keyring: Path


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What a bundle is of."""

    compatible: str
    version: str
    build_id: str
    slot: str
    image: Path
    #: The image's index, for a casync bundle.
    index: bytes
    form: Literal["casync", "plain"]


def make_bundle(content: BundleContent, target: Path, *, signer: BundleSigner, work: Path) -> None:
    """Write the bundle of `content` to `target`, whole or not at all; `work` is an empty directory of the file system.

    Raises:
        ProgramMissingError, ProgramFailedError: `rauc` is absent, or refused something.
    """
    source = work / "content"
    source.mkdir()
    name = _IMAGE_NAME
    if content.form == "casync":
        name += ".caibx"
        (source / name).write_bytes(content.index)
    else:
        os.link(content.image, source / name) if _same_file_system(content.image, source) else (
            source / name
        ).symlink_to(content.image.absolute())
    (source / "manifest.raucm").write_text(
        f"[update]\ncompatible={content.compatible}\nversion={content.version}\nbuild={content.build_id}\n\n"
        f"[image.{content.slot}]\nfilename={name}\n",
        encoding="utf-8",
    )
    made = work / "made.raucb"
    signing: list[str | Path] = ["--cert", signer.certificate, "--key", signer.key, "--keyring", signer.keyring]
    run(["rauc", *signing, "bundle", source, made], timeout_s=_TIMEOUT_S)
    # What does not verify here would verify nowhere.
    run(["rauc", "--keyring", signer.keyring, "info", made], timeout_s=_TIMEOUT_S)
    with made.open("rb") as stream:
        os.fsync(stream.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)
    sync_directory(target.parent)


def _same_file_system(image: Path, directory: Path) -> bool:
    return image.stat().st_dev == directory.stat().st_dev
