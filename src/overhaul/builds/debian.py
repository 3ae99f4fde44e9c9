"""The builder of Debian images: chosen packages, installed by mmdebstrap, as a file system for a slot.

apt resolves and downloads first (`debian_archives`); then the packages are installed without any network from exactly
those archives, whose digests apt checks once more, and the tree becomes an ext4 image (squashfs on request, for which
no deltas can be made). Inside, root is nobody; the image has the right owners because it is made inside too.
"""

import io
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import overhaul
from overhaul.builds.builder import Built, MadeImage, Workplace
from overhaul.builds.debian_archives import DebianArchives, Resolved, packages_index, release_text
from overhaul.builds.make_output import parse_manifest
from overhaul.builds.recipe import Recipe
from overhaul.builds.results import BuildFailedError, BuildFailure, FailureKind, Phase
from overhaul.builds.sandbox import Ended, Limits, Sandbox

_FILESYSTEMS = ("ext4", "squashfs")
_FIRST_BOOT = "usr/lib/overhaul/first-boot"
_UNIT = """\
[Unit]
Description=First boot of this image
ConditionPathExists=!/var/lib/overhaul-first-boot
After=local-fs.target

[Service]
Type=oneshot
ExecStart=/usr/lib/overhaul/first-boot
ExecStartPost=/usr/bin/touch /var/lib/overhaul-first-boot

[Install]
WantedBy=multi-user.target
"""
_QUERY = "dpkg-query --admindir=\"$1/var/lib/dpkg\" -W -f '${Package} ${Version}\\n' > /work/manifest"
#: What differs from build to build and that a running system makes anew.
_CLEAN = 'rm -rf "$1/var/cache/ldconfig/aux-cache" "$1"/var/log/*.log "$1"/var/log/apt "$1/etc/hostname"'


@dataclass(frozen=True, kw_only=True)
class DebianBuilder:
    """Makes root file systems of Debian."""

    archives: DebianArchives
    limits: Limits = field(default_factory=Limits)
    name: str = "debian"

    def build(self, recipe: Recipe, place: Workplace) -> Built:
        """Make the image of `recipe` in `place`."""
        filesystem = recipe.filesystem or "ext4"
        if filesystem not in _FILESYSTEMS or recipe.repositories or recipe.repository_keys or recipe.revision:
            detail = "Debian images are ext4 or squashfs, without further repositories and without a revision"
            raise BuildFailedError(BuildFailure(kind=FailureKind.SETUP_FAILED, detail=detail))
        place.watcher.phase(Phase.CONTAINER_SETUP)
        resolved = self.archives.resolve(recipe, place.watcher, download=True)
        place.watcher.phase(Phase.VALIDATE_MANIFEST)
        work = self._prepare(recipe, resolved, place.directory)
        place.watcher.phase(Phase.BUILDING_IMAGE)
        command = _command(recipe)
        installed = self._run(command, place, work, timestamp=_timestamp(self.archives, resolved))
        if installed.status != 0:
            raise _failed("Error while installing packages. See stdout/stderr", installed)
        manifest_text = (work / "manifest").read_bytes()
        name = f"{recipe.profile}-{recipe.version}-{recipe.target}-{recipe.key[:12]}-{filesystem}.img"
        imaged = self._run(
            _image_command(recipe, filesystem, name, timestamp=_timestamp(self.archives, resolved)),
            place,
            work,
            timestamp=_timestamp(self.archives, resolved),
        )
        if imaged.status != 0:
            too_big = b"image-size" in imaged.stderr
            kind = FailureKind.TOO_BIG if too_big else FailureKind.BUILD_FAILED
            raise _failed("Selected packages exceed device storage" if too_big else "No image", imaged, kind)
        manifest_file = f"{name.removesuffix('.img')}.manifest"
        (work / "outputs" / manifest_file).write_bytes(manifest_text)
        return Built(
            outputs=work / "outputs",
            images=(MadeImage(name=name, type="rootfs", filesystem=filesystem),),
            manifest=parse_manifest(manifest_text.decode(errors="replace")),
            manifest_text=manifest_text,
            builder_digest=resolved.digest,
            document={
                "id": recipe.profile, "target": recipe.target, "version_number": recipe.version,
                "version_code": "", "arch_packages": recipe.target, "image_prefix": name.removesuffix(".img"),
                "source_date_epoch": _timestamp(self.archives, resolved),
            },
            command=tuple(command),
            command_packages=recipe.packages,
            stdout=installed.stdout.decode(errors="replace"),
            stderr=installed.stderr.decode(errors="replace"),
        )  # fmt: skip

    def _prepare(self, recipe: Recipe, resolved: Resolved, directory: Path) -> Path:
        work, repository = directory / "debian", directory / "repository"
        (repository / "archives").mkdir(parents=True)
        index = packages_index(resolved.archives, below="archives").encode()
        (repository / "Packages").write_bytes(index)
        (repository / "Release").write_text(release_text(recipe.version, index))
        for part in ("tmp", "outputs"):
            (work / part).mkdir(parents=True)
            (work / part).chmod(0o777)  # only who gets into the worker's directory sees it
        (work / "overlay.tar").write_bytes(_overlay(recipe, self.archives.sources_list(recipe.version)))
        return work

    def _run(self, command: list[str], place: Workplace, work: Path, *, timestamp: int) -> Ended:
        python = Path(sys.base_prefix)
        sandbox = Sandbox(
            read_only={
                "/repository": place.directory / "repository",
                "/repository/archives": self.archives.cache,
                "/python/overhaul": Path(overhaul.__file__).parent,
                "/etc/apt/trusted.gpg.d": Path("/etc/apt/trusted.gpg.d"),
                "/etc/dpkg": Path("/etc/dpkg"),
                **({} if python.is_relative_to("/usr") else {str(python): python}),
            },
            writable={"/work": work},
            owners=True,
            limits=self.limits,
        )
        environment = {
            "TMPDIR": "/work/tmp",
            "PYTHONPATH": "/python",
            "SOURCE_DATE_EPOCH": str(timestamp),
            "DEBIAN_FRONTEND": "noninteractive",
        }
        return sandbox.run(command, directory="/work", follower=place.watcher, environment=environment)


def _command(recipe: Recipe) -> list[str]:
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        f"--architectures={recipe.target}", "--skip=output/dev,check/qemu",
        '--aptopt=APT::Install-Recommends "false"',
    ]  # fmt: skip
    if recipe.packages:
        command.append(f"--include={','.join(recipe.packages)}")
    command += [
        "--customize-hook=tar-in /work/overlay.tar /",
        f"--customize-hook={_QUERY}",
        f"--customize-hook={_CLEAN}",
        recipe.version,
        "/work/tree",
        "deb [trusted=yes] copy:/repository ./",
    ]
    return command


def _image_command(recipe: Recipe, filesystem: str, name: str, *, timestamp: int) -> list[str]:
    if filesystem == "squashfs":
        options = ["-noappend", "-quiet", "-no-progress", "-comp", "zstd"]
        return ["mksquashfs", "/work/tree", f"/work/outputs/{name}", *options]
    size = (recipe.rootfs_size_mb or 0) << 20
    python = str(Path(sys.executable).resolve())
    identity = f"{recipe.profile}-{recipe.version}-{recipe.target}"
    module = "overhaul.builds._image_of_tree"
    return [python, "-m", module, "/work/tree", f"/work/outputs/{name}", identity, str(timestamp), str(size)]


def _timestamp(archives: DebianArchives, resolved: Resolved) -> int:
    """Return the time of the newest archive: it depends on what is in the image and on nothing else."""
    return max(int((archives.cache / one.file_name).stat().st_mtime) for one in resolved.archives)


def _overlay(recipe: Recipe, sources_list: str) -> bytes:
    """Return a tar of the files that the image is given besides its packages."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        files = {"etc/apt/sources.list": (sources_list, 0o644)}
        if recipe.defaults:
            files |= {
                _FIRST_BOOT: (recipe.defaults, 0o755),
                "usr/lib/systemd/system/overhaul-first-boot.service": (_UNIT, 0o644),
            }
        for name, (text, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), mode
            archive.addfile(member, io.BytesIO(text.encode()))
        if recipe.defaults:
            link = tarfile.TarInfo("etc/systemd/system/multi-user.target.wants/overhaul-first-boot.service")
            link.type, link.linkname = tarfile.SYMTYPE, "/usr/lib/systemd/system/overhaul-first-boot.service"
            archive.addfile(link)
    return data.getvalue()


def _failed(detail: str, ended: Ended, kind: FailureKind = FailureKind.BUILD_FAILED) -> BuildFailedError:
    return BuildFailedError(
        BuildFailure(
            kind=kind,
            detail=detail,
            stdout=ended.stdout.decode(errors="replace"),
            stderr=ended.stderr.decode(errors="replace"),
        )
    )
