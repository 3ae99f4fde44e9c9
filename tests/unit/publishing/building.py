"""Builders for repositories and images that are small enough to be made for every test."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.publish import Published, PublishRequest, publish
from overhaul.release.record import ReleaseId

#: When every repository here is made: later than any file's own time, as a real publisher's clock is.
MADE_AT = 4_000_000_000.0
DAY = 86_400.0


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = MADE_AT

    def __call__(self) -> float:
        return self.now


def release_id(
    version: str = "1.0", build_id: str = "1", *, product: str = "kiosk", variant: str = "shop"
) -> ReleaseId:
    """Return the name of a release."""
    return ReleaseId(product=product, variant=variant, arch="x86_64", version=version, build_id=build_id)


def make_repository(
    directory: Path, *, clock: Clock | None = None, products: tuple[str, ...] = ("kiosk",)
) -> Repository:
    """Make a repository with demo keys in `directory` and open it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    create_repository(directory, products=products, demo_keys=True, clock=clock or Clock())
    return replace(open_repository(directory), clock=clock or Clock())


def random_bytes(seed: int, size: int = 300_000) -> bytes:
    """Return bytes that do not compress; one seed gives the same bytes."""
    return random.Random(seed).randbytes(size)


def write_image(path: Path, *parts: bytes) -> Path:
    """Write an image of no known file system."""
    path.write_bytes(b"".join(parts))
    return path


def publish_image(
    repository: Repository,
    image: Path,
    version: str = "1.0",
    build_id: str = "1",
    *,
    channel: str = "stable",
    checkpoint: bool = False,
    delta_from: tuple[str, ...] | None = None,
    castr: bool | None = None,
    variant: str = "shop",
    rollout_percent: float | None = None,
) -> Published:
    """Publish `image` and return what was done."""
    request = PublishRequest(
        source=image,
        release=release_id(version, build_id, variant=variant),
        channel=channel,
        checkpoint=checkpoint,
        delta_from=delta_from,
        castr=castr,
        rollout_percent=rollout_percent,
    )
    return publish(repository, request, workers=1, progress=Silence())
