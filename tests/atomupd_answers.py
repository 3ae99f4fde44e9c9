"""Manifests of devices and answers of a server, for tests of the atomupd client."""

import json
from pathlib import Path

from overhaul.dialects.atomupd.candidates import Candidate, Update, UpdatePath, encode_file
from overhaul.dialects.atomupd.manifest import Image, image_of_fields
from overhaul.dialects.atomupd.paths import answer_paths

RUNNING = {
    "product": "steamos",
    "release": "holo",
    "variant": "steamdeck",
    "branch": "stable",
    "default_update_branch": "stable",
    "arch": "amd64",
    "version": "3.6.0",
    "buildid": "20240101.1",
}


def image(**changes: object) -> Image:
    """Return the image that runs, or one that differs in `changes`; None leaves a field out."""
    fields = {**RUNNING, **changes}
    return image_of_fields({name: value for name, value in fields.items() if value is not None})


def write_manifest(path: Path, **changes: object) -> Path:
    """Write the manifest of the image that runs."""
    fields = {**RUNNING, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return path


def update_to(*images: Image, stem: str = "chunked", replacement: str = "") -> Update:
    """Return an answer with these candidates, all of one bundle."""
    candidates = tuple(Candidate(image=one, update_path=f"{stem}.raucb") for one in images)
    path = UpdatePath(release="holo", candidates=candidates, replacement_eol_variant=replacement)
    return Update(minor=path)


def static_files(update: Update, *, running: Image | None = None, branch: str = "stable") -> dict[str, bytes]:
    """Return the file that answers a device with `update`, below the path `meta`."""
    path = answer_paths(running or image(), branch=branch).standard
    return {f"meta/{path}": encode_file(update)}
