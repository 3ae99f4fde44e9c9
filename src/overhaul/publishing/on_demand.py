"""Images on demand as releases of our own repository, and what was signed about them under its `builds` role.

The signer's process calls both, because the keys are where it is. Neither key of a product's releases nor that of
`builds` ever comes near a worker.
"""

from collections.abc import Callable
from pathlib import Path

from overhaul.builds.records import BuildRecord
from overhaul.builds.releases import release_of
from overhaul.builds.results import PublishedRelease
from overhaul.progress import Silence
from overhaul.publishing.opening import Repository
from overhaul.publishing.publish import PublishRequest, publish
from overhaul.release.record import ReleaseId
from overhaul.trust import roles


def image_publisher(repository: Repository, *, channel: str) -> Callable[[BuildRecord, Path], PublishedRelease | None]:
    """Return what publishes the image of a build in `repository`, so that devices get it as chunks or a delta."""

    def published(build: BuildRecord, directory: Path) -> PublishedRelease | None:
        release = release_of(build, channel=channel)
        images = sorted(directory.glob("*.img"))
        if release is None or not images:
            return None
        name = ReleaseId(
            product=release.product,
            variant=release.variant,
            arch=release.arch,
            version=release.version,
            build_id=release.build_id,
        )
        request = PublishRequest(source=images[0], release=name, channel=release.channel)
        publish(repository, request, workers=1, progress=Silence())
        return release

    return published


def statement_recorder(repository: Repository) -> Callable[[str, bytes], None] | None:
    """Return what signs a statement under the `builds` role; None when the repository has no such role."""
    if roles.BUILDS not in repository.published().report.roles:
        return None

    def record(path: str, statement: bytes) -> None:
        with repository.locked("build") as lock:
            change = repository.change(lock)
            change.editor.put_target(path, statement)
            change.commit()

    return record
