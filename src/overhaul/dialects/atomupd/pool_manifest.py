"""Writes an image's `manifest.json` as it lies in a pool."""

import json

from overhaul.dialects.atomupd.candidates import Json
from overhaul.dialects.atomupd.manifest import Image


def encode_manifest(image: Image) -> bytes:
    """Return the manifest of an image under the rules of branches; what has its default is left out."""
    document: dict[str, Json] = {"product": image.product, "release": image.release, "variant": image.shown_variant}
    if not image.legacy_variant:
        document.update(branch=image.branch, default_update_branch=image.default_update_branch)
    document.update(arch=image.arch, version=image.version.text, buildid=str(image.build_id))
    if image.introduces_checkpoint or image.requires_checkpoint:
        document["introduces_checkpoint"] = image.introduces_checkpoint
        document["requires_checkpoint"] = image.requires_checkpoint
    if image.shadow_checkpoint:
        document["shadow_checkpoint"] = True
    if image.skip:
        document["skip"] = True
    if image.estimated_size:
        document["estimated_size"] = image.estimated_size
    return json.dumps(document, indent=2).encode() + b"\n"
