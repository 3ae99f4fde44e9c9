"""The seed era's names of finished images, and the way back from such a name to the build.

An image is named by what it was made of and by its manifest (15 digits); its files lie under
`[custom/<defaults>/]<distribution>/<version>/<target>/<profile>/<manifest>`. Nothing is stored under these names: they
are bound to the recipe when a client first learns them, and checked against the build they lead to each time. An image
with first-boot defaults has their 32 digits in its address and is in no list, so that only who knows the script, or
was given the address, can fetch it.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from overhaul.builds.queue import BuildQueue
from overhaul.builds.records import BuildRecord
from overhaul.dialects.asu import hashes
from overhaul.dialects.asu.catalogue import Catalogue

#: What a device can install by itself, the best first.
_SYSUPGRADE = (
    "*-squashfs-sysupgrade.bin",
    "*-squashfs-sysupgrade.tar",
    "*-squashfs-nand-sysupgrade.bin",
    "*-squashfs.trx",
    "*-squashfs.chk",
    "*-squashfs.bin",
    "*-squashfs-sdcard.img.gz",
    "*-combined-squashfs*",
    "*.img.gz",
)


@dataclass(frozen=True, kw_only=True)
class SeedImage:
    """A finished image under its seed-era names."""

    build: BuildRecord
    distro: str
    version: str

    @property
    def manifest_hash(self) -> str:
        """15 digits of the manifest as the image builder printed it."""
        return "" if self.build.result is None else self.build.result.manifest_sha256[:15]

    @property
    def defaults_hash(self) -> str:
        """32 digits of the first-boot script; empty without one."""
        defaults = self.build.recipe.defaults
        return hashes.seed_defaults_hash(defaults) if defaults else ""

    @property
    def image_hash(self) -> str:
        """The image's name."""
        recipe = self.build.recipe
        return hashes.seed_image_hash(
            distro=self.distro,
            version=self.version,
            target=recipe.target,
            profile=recipe.profile,
            defaults_hash=self.defaults_hash,
            manifest_hash=self.manifest_hash,
        )

    @property
    def directory(self) -> str:
        """Where its files are, without slashes at the ends."""
        recipe = self.build.recipe
        custom = f"custom/{self.defaults_hash}/" if self.defaults_hash else ""
        return f"{custom}{self.distro}/{self.version}/{recipe.target}/{recipe.profile}/{self.manifest_hash}"

    @property
    def log_name(self) -> str:
        """The name of its build log."""
        return f"buildlog-{self.image_hash}.txt"

    @property
    def sysupgrade(self) -> str | None:
        """The file that the device can install by itself."""
        names = [] if self.build.result is None else sorted(file.name for file in self.build.result.files)
        return next((name for pattern in _SYSUPGRADE for name in names if fnmatchcase(name, pattern)), None)

    def bind(self, queue: BuildQueue) -> None:
        """Let its names lead to it from now on."""
        if self.build.result is not None:
            queue.bind(image_name(self.image_hash), self.build.recipe_key)
            queue.bind(manifest_name(self.manifest_hash), self.build.recipe_key)


def image_name(image_hash: str) -> str:
    """Return what the queue calls an image; apart from the names of requests."""
    return f"image.{image_hash}"


def manifest_name(manifest_hash: str) -> str:
    """Return what the queue calls a manifest."""
    return f"manifest.{manifest_hash}"


def packages_name(packages_hash: str) -> str:
    """Return what the queue calls a package set."""
    return f"packages.{packages_hash}"


def find_image(queue: BuildQueue, catalogue: Catalogue, image_hash: str) -> SeedImage | None:
    """Return the image of that name, or None when it is not, or no longer, the one the name was given to."""
    build = queue.find_named(image_name(image_hash))
    if build is None or build.result is None:
        return None
    for distro, version in sources_of(build, catalogue):
        image = SeedImage(build=build, distro=distro, version=version)
        if image.image_hash == image_hash:
            return image
    return None


def find_directory(queue: BuildQueue, catalogue: Catalogue, directory: str) -> SeedImage | None:
    """Return the image whose files are below `directory`."""
    parts = directory.split("/")
    defaults_hash = ""
    if len(parts) == 8 and parts[0] == "custom":
        defaults_hash, parts = parts[1], parts[2:]
    if len(parts) != 6:
        return None
    distro, version, target, subtarget, profile, manifest_hash = parts
    image_hash = hashes.seed_image_hash(
        distro=distro,
        version=version,
        target=f"{target}/{subtarget}",
        profile=profile,
        defaults_hash=defaults_hash,
        manifest_hash=manifest_hash,
    )
    image = find_image(queue, catalogue, image_hash)
    # The name is short: what it leads to must have this very address.
    return image if image is not None and image.directory == directory else None


def sources_of(build: BuildRecord, catalogue: Catalogue) -> list[tuple[str, str]]:
    """Return the (distribution, version) pairs that a build can have been asked for as, the likeliest first."""
    recipe = build.recipe
    own = (recipe.distribution, "snapshot" if recipe.version == "SNAPSHOT" else recipe.version)
    children = [
        (distribution.name, version.name)
        for distribution in catalogue.distributions.values()
        for version in distribution.versions
        if version.parent is not None
        and version.parent[0] == recipe.distribution
        and [name for name, _url in version.repositories] == [name for name, _url in recipe.repositories]
    ]
    return [*children, own] if recipe.repositories else [own, *children]
