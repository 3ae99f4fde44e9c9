"""Real images for the demonstration.

With mmdebstrap: `old` is this machine's Debian release as it was first published, `new` is the same package list
with updates and security fixes on top, `bad` is `new` without the web server that the device's health check asks
for. Without mmdebstrap, or without a package source, trees are made from this machine's own files, which is said.

Trees and images are kept in the work directory, so a second demonstration starts at once.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.image import ImageShape, build_image, unpack_tar
from overhaul.progress import Silence

_PACKAGES = (
    "systemd-sysv,dbus,nginx-light,ca-certificates,openssl,curl,iproute2,python3-minimal,libpython3-stdlib,perl,"
    "less,nano,gnupg,openssh-client,libssl3,bind9-libs,vim-common,git"
)
#: The service whose absence makes a release bad.
SERVICE = "nginx.service"
_EPOCH = "1700000000"
_IMAGE_BYTES = 640 << 20
# Nothing of the build's time or place is content: logs, caches, ids and keys go.
_CLEANUP = (
    'rm -rf "$1"/var/log/* "$1"/var/cache/* "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname; '
    'mkdir -p "$1"/var/log/nginx; : > "$1"/etc/machine-id; '
    'find "$1" -xdev -name "*.pyc" -delete'
)


@dataclass(frozen=True)
class Images:
    """Three ext4 images of one size, and a sentence on where they come from."""

    old: Path
    new: Path
    bad: Path
    origin: str
    bootable: bool


def make_images(directory: Path, say: Callable[[str], None]) -> Images:
    """Return the images in `directory`, made there when they are missing."""
    directory.mkdir(parents=True, exist_ok=True)
    origin = directory / "origin"
    trees = [directory / f"{name}.tar" for name in ("old", "new", "bad")]
    if not origin.exists():
        origin.write_text(_from_debian(trees, say) or _from_this_machine(trees, say))
    old, new, bad = (_image(tree, say) for tree in trees)
    text = origin.read_text()
    bootable = "mmdebstrap" in text and shutil.which("systemd-nspawn") is not None
    return Images(old=old, new=new, bad=bad, origin=text, bootable=bootable)


def _image(tree: Path, say: Callable[[str], None]) -> Path:
    """Return the ext4 image of a tree; made as `overhaul publish` would make it, but of the slots' size."""
    image = tree.with_suffix(".ext4")
    if not image.exists():
        say(f"Making {image.name}")
        partial = tree.with_suffix(".partial.ext4")
        partial.unlink(missing_ok=True)
        shape = ImageShape(name="demo", size_bytes=_IMAGE_BYTES, timestamp=int(_EPOCH))
        with tempfile.TemporaryDirectory(dir=tree.parent) as unpacked:
            unpack_tar(tree, Path(unpacked))
            build_image(Path(unpacked), partial, shape=shape, progress=Silence())
        partial.rename(image)
    return image


def _from_debian(trees: list[Path], say: Callable[[str], None]) -> str:
    """Make the trees with mmdebstrap; return where they come from, or nothing when that is not possible here."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        return ""
    codename = _os_release().get("VERSION_CODENAME", "")
    main, security = _mirror(codename), _mirror(f"{codename}-security")
    if not main:
        return ""
    release = [f"deb {main} {codename} main"]
    updated = [*release, f"deb {main} {codename}-updates main"]
    if security:
        updated.append(f"deb {security} {codename}-security main")
    old, new, bad = trees
    say(f"Making two Debian {codename} root file systems with mmdebstrap (release; release + updates + security)")
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(_bootstrap, codename, release, old), pool.submit(_bootstrap, codename, updated, new)]
        if not all(job.result() for job in jobs):
            return ""
    say(f"Making the bad release: the same as the second, without {SERVICE}")
    _without_service(new, bad)
    return f"Debian {codename}, made with mmdebstrap"


def _bootstrap(codename: str, sources: list[str], tree: Path) -> bool:
    partial = tree.with_suffix(".partial.tar")
    command = [
        "mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=path-exclude=/usr/share/man/*",
        f"--customize-hook={_CLEANUP}", codename, str(partial), "-",
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "LC_ALL": "C"}
    with (tree.parent / f"{tree.stem}.log").open("w") as log:
        done = subprocess.run(
            command, input="\n".join(sources) + "\n", text=True, stdout=log, stderr=log, env=environment, check=False
        )
    if done.returncode == 0:
        partial.rename(tree)
    return done.returncode == 0


def _without_service(new: Path, bad: Path) -> None:
    """Write `bad`: the tar `new` with the service's package files left out, as a careless build would."""
    partial = bad.with_suffix(".partial.tar")
    with tarfile.open(new) as source, tarfile.open(partial, "w") as target:
        for member in source:
            if "nginx" in member.name and not member.name.startswith(("./var/lib/dpkg", "./usr/share/doc")):
                continue
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    partial.rename(bad)


def _from_this_machine(trees: list[Path], say: Callable[[str], None]) -> str:
    """Make trees out of this machine's own programs and libraries: real bytes, but nothing that boots."""
    say("mmdebstrap cannot be used here: making the trees from this machine's own /usr/bin and /usr/lib")
    files = [path for root in ("/usr/bin", "/usr/sbin", "/etc") for path in sorted(Path(root).rglob("*"))]
    regular = [path for path in files if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)]
    old, new, bad = trees
    for tree, dropped in ((old, 50), (new, 51), (bad, 52)):
        with tarfile.open(tree, "w") as archive:
            for number, path in enumerate(regular):
                if number % dropped:
                    archive.add(path, arcname=f".{path}", recursive=False)
            if tree is not bad:
                unit = archive.gettarinfo("/etc/os-release", arcname=f"./usr/lib/systemd/system/{SERVICE}")
                unit.type = tarfile.REGTYPE
                with Path("/etc/os-release").open("rb") as stream:
                    unit.size = os.fstat(stream.fileno()).st_size
                    archive.addfile(unit, stream)
    return "this machine's own files"


def _mirror(codename: str) -> str:
    """Return the address of the package source for `codename` that this machine already uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listing.stdout.splitlines():
        name, _space, address = line.partition(" ")
        if name == codename:
            return address
    return ""


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key: value.strip('"') for key, _equals, value in pairs}
