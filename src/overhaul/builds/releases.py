"""What an image on demand is called as a release of our own repository.

Devices with the same set of packages are one variant, so that what is published next for them is a delta of *their*
image, and nobody is offered an image with other packages.
"""

import hashlib
from datetime import UTC, datetime

from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord
from overhaul.builds.results import PublishedRelease

_VARIANT_DIGITS = 24


def variant_of(recipe: Recipe) -> str:
    """Return the variant of devices that have what `recipe` asks for, in whatever version."""
    asked = "\0".join([*sorted(set(recipe.packages)), "", recipe.defaults, recipe.filesystem or "ext4"])
    return f"set-{hashlib.sha256(asked.encode()).hexdigest()[:_VARIANT_DIGITS]}"


def release_of(build: BuildRecord, *, channel: str) -> PublishedRelease | None:
    """Return the name of the release that `build` becomes; None when it is no image for A/B devices."""
    if build.recipe.builder != "debian" or build.started_at is None:
        return None
    started = datetime.fromtimestamp(build.started_at, UTC)
    return PublishedRelease(
        product=build.recipe.profile,
        variant=variant_of(build.recipe),
        arch=build.recipe.target,
        version=started.strftime("%Y%m%d.%H%M%S"),
        build_id=f"b{build.build_id}",
        channel=channel,
    )
