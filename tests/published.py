"""A real repository in a directory, published through the publisher's own rooms, small enough for every test.

Its clock stands at the time it was made and moves only when told.
"""

import dataclasses
import random
import time
from pathlib import Path

from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.publish import PublishRequest, publish
from overhaul.publishing.upkeep import refresh_repository
from overhaul.release.record import Release, ReleaseId


class PublishedRepository:
    """A repository in `directory`; its keys lie beside it."""

    def __init__(self, directory: Path, *, products: tuple[str, ...] = ("alpha",)) -> None:
        self.directory = directory
        self.now = float(int(time.time()))
        create_repository(directory, products=products, demo_keys=True, clock=self.clock)
        self.public = directory / "store" / "public"
        self._random = random.Random(7)

    @property
    def repository(self) -> Repository:
        """The repository as a publisher opens it."""
        return dataclasses.replace(open_repository(self.directory), clock=self.clock)

    def clock(self) -> float:
        """Return the time of this repository."""
        return self.now

    def publish(
        self,
        version: str,
        build_id: str,
        *,
        product: str = "alpha",
        variant: str = "desk",
        arch: str = "amd64",
        channel: str = "stable",
        image_size: int = 400_000,
        checkpoint: bool = False,
        rollout_percent: float | None = None,
    ) -> Release:
        """Publish an image of random bytes and return its record."""
        image = self.directory.parent / f"{version}.img"
        image.write_bytes(self._random.randbytes(image_size))
        request = PublishRequest(
            source=image,
            release=ReleaseId(product=product, variant=variant, arch=arch, version=version, build_id=build_id),
            channel=channel,
            checkpoint=checkpoint,
            rollout_percent=rollout_percent,
        )
        return publish(self.repository, request, workers=1, progress=Silence()).release

    def refresh(self) -> None:
        """Sign again what is due, and the timestamp always."""
        refresh_repository(self.repository)

    def file(self, path: str) -> bytes:
        """Return the bytes published under the public path `path`."""
        return (self.public / path).read_bytes()
