"""A signed repository in a local directory, with releases, channels and the files they name.

Everything that is signed goes through the real editor and the real policy rules; only the content files hold
random bytes instead of chunks, because whoever serves them never looks inside.
"""

import hashlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from overhaul.host.files import replace_bytes
from overhaul.policy.document import Policy, PolicyEntry, encode_policy
from overhaul.policy.edit import new_policy, put_entry
from overhaul.policy.rollout import Rollout
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, PackRef, Release, ReleaseId, encode_release
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.keys import Keyring

#: When these repositories are first signed.
SIGNED_AT = datetime(2026, 6, 1, 12, tzinfo=UTC)


class PublishedTree:
    """A repository below `directory`; its keys lie beside it."""

    def __init__(self, directory: Path, *, products: tuple[str, ...] = ("alpha",)) -> None:
        self.directory = directory
        self.public = directory / "public"
        self.now = SIGNED_AT
        self.policies: dict[tuple[str, str], Policy] = {}
        self._random = random.Random(7)
        self._keyring = Keyring.generate(directory.parent / f"{directory.name}-keys", products=products, demo=True)
        self.edit(lambda editor: editor.create(products))

    @property
    def seconds(self) -> int:
        """The time of this tree in seconds since 1970 UTC."""
        return int(self.now.timestamp())

    def edit(self, change: Callable[[MetadataEditor], object]) -> None:
        """Publish a change of the signed metadata."""
        editor = MetadataEditor(self._read, self._keyring, self.now)
        change(editor)
        for key, data in editor.changes():
            self.write(key, data)

    def refresh(self) -> None:
        """Sign again what is due."""
        self.edit(lambda editor: editor.refresh())

    def write(self, path: str, data: bytes) -> None:
        """Give the public path `path` the content `data`."""
        file = self.public / path
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, data)

    def content(self, kind: str, suffix: str, *, size: int) -> FileRef:
        """Lay random bytes into the tree under their digest."""
        data = self._random.randbytes(size)
        digest = hashlib.sha256(data).hexdigest()
        path = f"content/{kind}/{digest[:2]}/{digest}.{suffix}"
        self.write(path, data)
        return FileRef(path=path, size=size, sha256=digest)

    def release(
        self,
        version: str,
        build_id: str,
        *,
        product: str = "alpha",
        variant: str = "desk",
        arch: str = "amd64",
        image_size: int = 2 << 30,
        pack_size: int = 300_000,
        sources: tuple[Release, ...] = (),
        checkpoint: bool = False,
    ) -> Release:
        """Publish one release with deltas from `sources`, in no channel yet."""
        release = Release(
            format=1,
            id=ReleaseId(product=product, variant=variant, arch=arch, version=version, build_id=build_id),
            published_at=self.seconds,
            image=ImageRecord(
                size=image_size,
                filesystem="ext4",
                index=self.content("indexes", "caibx", size=4_000),
                packs=(
                    PackRef(
                        pack=self.content("packs", "pack", size=pack_size),
                        frames=self.content("frames", "frames", size=1_000),
                    ),
                ),
                deltas=tuple(self._delta(source) for source in sources),
            ),
            checkpoint=checkpoint,
        )
        self.edit(lambda editor: editor.put_target(release.id.target_path, encode_release(release)))
        return release

    def offer(
        self,
        release: Release,
        channel: str = "stable",
        *,
        rollout: Rollout | None = None,
        checkpoint: bool = False,
        urgent: bool = False,
    ) -> None:
        """List `release` in a channel."""
        entry = PolicyEntry(
            variant=release.id.variant,
            arch=release.id.arch,
            version=release.id.version,
            build_id=release.id.build_id,
            rollout=rollout,
            checkpoint=checkpoint,
            urgent=urgent,
        )
        self.change_policy(
            release.id.product, channel, lambda policy: put_entry(policy, entry, now=self.seconds)
        )

    def change_policy(self, product: str, channel: str, change: Callable[[Policy], Policy]) -> None:
        """Publish a changed policy."""
        before = self.policies.get((product, channel)) or new_policy(
            product=product, channel=channel, now=self.seconds
        )
        policy = self.policies[product, channel] = change(before)
        self.edit(lambda editor: editor.put_target(f"{product}/policy/{channel}.json", encode_policy(policy)))

    def _delta(self, source: Release) -> DeltaRef:
        return DeltaRef(
            source_index=source.image.index.sha256,
            source_version=source.id.version,
            source_build_id=source.id.build_id,
            file=self.content("deltas", "delta", size=20_000),
            header_size=100,
            header_sha256="0" * 64,
            coders=("zstd",),
        )

    def _read(self, key: str) -> bytes | None:
        file = self.public / key
        return file.read_bytes() if file.is_file() else None
