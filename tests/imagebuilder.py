"""A stand-in for OpenWrt's ImageBuilder and the server it is downloaded from.

It keeps to the interface of the real one (archive, `make info`, `manifest`, `image`, their words and files) and
builds images that are only texts: the same text for the same input. Real ones are hundreds of megabytes and come from
servers that tests do not ask. Packages named `evil-*` do in their scripts what hostile packages would.
"""

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from overhaul.transfer.fetcher import Request, Response
from overhaul.trust.usign import UsignSecretKey, generate_usign_key

UPSTREAM = "https://upstream.test"
TARGET = "ath79/generic"
REVISION = "r24106-10cc5fcd00"

MAKEFILE = """\
export PROFILE PACKAGES FILES BIN_DIR EXTRA_IMAGE_NAME ROOTFS_PARTSIZE ROOTFS_FILESYSTEM STRIP_ABI
info manifest image package_list:
\t@python3 scripts/stand-in.py $@
.PHONY: info manifest image package_list
"""

#: What the stand-in runs; it lies in the archive as `scripts/stand-in.py`.
SCRIPT = r"""
import hashlib, json, os, pathlib, subprocess, sys, time

USES_APK = os.path.exists("repositories")
DEFAULTS = ["base-files", "busybox", "dnsmasq", "opkg"]
PROFILES = {
    "tplink_archer-c7-v2": ("TP-Link Archer C7 v2", ["kmod-ath10k-ct", "-opkg"], 100000),
    "8dev_carambola2": ("8devices Carambola 2", [], 700),
    "no-sysupgrade": ("No sysupgrade", [], 100000),
}
VERSIONS = {"base-files": "1", "busybox": "1.36", "dnsmasq": "2.90", "dnsmasq-full": "2.90", "opkg": "2022",
            "kmod-ath10k-ct": "5.15", "vim": "9.1-1", "vim-runtime": "9.1-1", "tmux": "3.4", "nginx": "1.25",
            "uhttpd": "2023", "big": "1", "slow": "1", "crash": "1"}
DEPENDS = {"vim": ["vim-runtime"]}
CONFLICTS = [("nginx", "uhttpd")]
CLASHES = [("dnsmasq-full", "dnsmasq")]

def fail(*lines):
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(1)

def selection():
    profile = os.environ.get("PROFILE") or next(iter(PROFILES))
    if profile not in PROFILES:
        print(f'Profile "{profile}" does not exist!\nUse "make info" to get a list of available profile names.',
              file=sys.stderr)
        sys.exit(2)
    words = os.environ.get("PACKAGES", "").split()
    names = [*DEFAULTS, *PROFILES[profile][1], "kernel", *words]
    gone = {name[1:] for name in names if name.startswith("-")}
    chosen = []
    for name in names:
        for one in [name, *DEPENDS.get(name, [])]:
            if not one.startswith("-") and one not in gone and one not in chosen:
                chosen.append(one)
    known = {**VERSIONS, "kernel": "5.15.167"}
    lines = []
    for name in chosen:
        if name not in known and not name.startswith("evil-"):
            lines.append(f"  {name} (no such package):\n    required by: world[{name}]" if USES_APK
                         else f" * opkg_install_cmd: Cannot install package {name}.")
    for one, other in CONFLICTS:
        if one in chosen and other in chosen:
            lines.append(f"  {one}-1.25-r1:\n    conflicts: {other}-2023-r0[{one}]" if USES_APK else
                         f" * check_conflicts_for: The following packages conflict with {one}:\n"
                         f" * check_conflicts_for: \t{other} * \n * opkg_install_cmd: Cannot install package {one}.")
    for one, other in CLASHES:
        if one in chosen and other in chosen:
            lines.append(f"ERROR: {one}-2.90-r1: trying to overwrite etc/x owned by {other}-2.90-r1." if USES_APK else
                         f" * check_data_file_clashes: Package {one} wants to install file /etc/x\n"
                         f"\tBut that file is already provided by package  * {other}\n"
                         f" * opkg_install_cmd: Cannot install package {one}.")
    if lines:
        fail("ERROR: unable to select packages:" if USES_APK else "Collected errors:", *lines)
    return profile, {name: known.get(name, "1") for name in sorted(chosen)}

EVIL = {
    "evil-network": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
    "evil-symlink": "import os; os.symlink('/etc/shadow', OUT + '/shadow.bin')",
    "evil-directory": "import shutil, os; shutil.rmtree(OUT); os.symlink('/etc', OUT)",
    "evil-pipe": "import os; os.mkfifo(OUT + '/pipe.bin')",
    "evil-name": "open(OUT + '/a b;c', 'w')",
    "evil-flood": "print('x' * 50_000_000)",
    "evil-fork": "import os, time\nwhile True:\n    os.fork() or time.sleep(60)",
    "evil-disk": "f = open('/builder/fill', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()",
    "evil-memory": "held = [bytearray(b'x' * (64 << 20)) for _ in range(1000)]",
    "evil-outside": "open('/etc/passwd', 'a'); open('/usr/bin/evil', 'w')",
    "evil-signature": "open(OUT + '/build.json', 'w').write('{}')",
}

def image():
    profile, manifest = selection()
    title, _packages, limit = PROFILES[profile]
    out = pathlib.Path(os.environ.get("BIN_DIR") or "bin/targets/ath79/generic")
    out.mkdir(parents=True)
    print("Building images for ath79 -", title)
    print("Packages:", *manifest, flush=True)
    for name in manifest:
        if name in EVIL:
            exec(EVIL[name], {"OUT": str(out), "__name__": name})
        if name == "slow":
            time.sleep(600)
        if name == "crash":
            fail("make: *** [Makefile:1: image] Error 1")
    extra = os.environ.get("EXTRA_IMAGE_NAME", "").lower().replace(" ", "-").replace("_", "-")
    filesystems = [os.environ["ROOTFS_FILESYSTEM"]] if os.environ.get("ROOTFS_FILESYSTEM") else ["squashfs", "ext4"]
    prefix = "openwrt-" + (extra + "-" if extra else "") + "ath79-generic-" + profile
    overlay = pathlib.Path(os.environ["FILES"]) if os.environ.get("FILES") else None
    files = {str(p.relative_to(overlay)): p.read_text() for p in sorted(overlay.rglob("*")) if p.is_file()} \
        if overlay else {}
    text = json.dumps([manifest, files, os.environ.get("ROOTFS_PARTSIZE")], sort_keys=True)
    images = []
    for filesystem in filesystems:
        for kind in ("factory",) if profile == "no-sysupgrade" else ("factory", "sysupgrade"):
            data = f"{filesystem} {kind} {text}\n".encode() + b"x" * (600 if "big" in manifest else 0)
            if len(data) > limit:
                print(f"{profile}: {kind} image is too big by {len(data) - limit} bytes", file=sys.stderr)
                continue
            name = f"{prefix}-{filesystem}-{kind}.bin"
            (out / name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            images.append({"name": name, "type": kind, "filesystem": filesystem, "sha256": digest,
                           "sha256_unsigned": digest})
    (out / f"{prefix}.manifest").write_text("".join(f"{n} - {v}\n" for n, v in manifest.items()))
    document = {"metadata_version": 1, "target": "ath79/generic", "version_number": "23.05.5",
                "version_code": "REVISION", "source_date_epoch": 1727000000, "arch_packages": "mips_24kc",
                "default_packages": sorted(DEFAULTS), "profiles": {profile: {
                    "image_prefix": prefix, "images": images, "supported_devices": [profile.replace("_", ",")],
                    "titles": [{"title": title}], "device_packages": PROFILES[profile][1]}}}
    (out / "profiles.json").write_text(json.dumps(document))
    (out / "sha256sums").write_text("".join(
        f"{hashlib.sha256(p.read_bytes()).hexdigest()} *{p.name}\n" for p in sorted(out.iterdir()) if p.is_file()))
    print("Calculating checksums...")

goal = sys.argv[1]
if goal == "info":
    print('Current Target: "ath79/generic"\nCurrent Architecture: "mips_24kc"\nCurrent Revision: "REVISION"')
    print("Default Packages:", *DEFAULTS)
    print("Available Profiles:\n")
    for name, (title, packages, _limit) in PROFILES.items():
        print(f"{name}:\n    {title}\n    Packages: {' '.join(packages)}\n    hasImageMetadata: 1")
elif goal == "manifest":
    print("resolving", file=sys.stderr)
    for name, version in selection()[1].items():
        print(f"{name} {version}" if USES_APK else f"{name} - {version}")
elif goal == "package_list":
    for name, version in sorted(VERSIONS.items()):
        print(f"{name} - {version} - 1000")
else:
    image()
"""


@dataclass
class StandInUpstream:
    """Serves ImageBuilders as a fetcher, out of memory."""

    key: UsignSecretKey = field(default_factory=generate_usign_key)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(
        self,
        version: str = "23.05.5",
        *,
        uses_apk: bool = False,
        compression: str = "xz",
        text: str = "",
        target: str = TARGET,
    ) -> str:
        """Serve an ImageBuilder of `version` and sign its digest with usign; return the digest."""
        archive = imagebuilder_archive(uses_apk=uses_apk, compression=compression, text=text)
        digest = hashlib.sha256(archive).hexdigest()
        path = "snapshots" if version == "SNAPSHOT" else f"releases/{version}"
        base = f"{UPSTREAM}/{path}/targets/{target}"
        suffix = "zst" if compression == "zstd" else compression
        name = f"openwrt-imagebuilder-{version}-{target.replace('/', '-')}.Linux-x86_64.tar.{suffix}"
        other = "0" * 64
        sums = f"{other} *openwrt-{version}-sdk.tar.xz\n{digest} *{name}\n".encode()
        self.files |= {
            f"{base}/{name}": archive,
            f"{base}/sha256sums": sums,
            f"{base}/sha256sums.sig": self.key.sign(sums).encode(),
        }
        return digest

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer one request."""
        self.asked.append(request.url)
        body = self.files.get(request.url)
        status = 404 if body is None else 200
        yield Response(url=request.url, status=status, headers={}, body=iter(() if body is None else (body,)))


def imagebuilder_archive(*, uses_apk: bool = False, compression: str = "xz", text: str = "") -> bytes:
    """Return an archive as upstream packs it, with one directory at its top."""
    files = {
        "Makefile": MAKEFILE,
        "scripts/stand-in.py": SCRIPT.replace("REVISION", REVISION) + text,
        ".config": 'CONFIG_TARGET_ARCH_PACKAGES="mips_24kc"\nCONFIG_TARGET_ROOTFS_SQUASHFS=y\n',
        "target/linux/ath79/base-files/lib/upgrade/platform.sh": "# stand-in\n",
    }
    if uses_apk:
        files["repositories"] = "https://upstream.test/base/packages.adb\n"
    else:
        files["repositories.conf"] = "src/gz base https://upstream.test/base\nsrc imagebuilder file:packages\n"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"openwrt-imagebuilder/{name}")
            member.size, member.mode = len(content.encode()), 0o644
            archive.addfile(member, io.BytesIO(content.encode()))
    return compressed(plain.getvalue(), compression)


def compressed(data: bytes, compression: str) -> bytes:
    """Return `data` packed by the program `compression`."""
    return subprocess.run([compression, "-c"], input=data, capture_output=True, check=True).stdout
