"""A small OpenWrt world for tests: an upstream in memory, our server in this process, and somebody who builds.

Upstream and worker are stand-ins: they say what a real download server and ImageBuilder would say of three releases,
a snapshot and a handful of devices and packages.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.types import ASGIApp

from overhaul.builds.memory import MemoryQueue
from overhaul.builds.queue import BuildQueue
from overhaul.builds.records import QueueLimits
from overhaul.builds.results import ArtefactFile, BuildFailure, BuildResult, BuiltImage, FailureKind, Phase
from overhaul.builds.store import ArtefactRecord, ArtefactStore, list_outputs
from overhaul.dialects.asu.catalogue_update import CatalogueUpdater, UpdateResult
from overhaul.dialects.asu.hashes import manifest_text, text_hash
from overhaul.dialects.asu.serving import AsuServer, open_server
from overhaul.dialects.asu.settings import AsuSettings
from overhaul.transfer.fetcher import Request, Response, UnreachableError
from overhaul.trust.usign import UsignPublicKey, UsignSecretKey

T = TypeVar("T")

UPSTREAM = "https://upstream.test"
STABLE = "23.05.5"
TARGET = "ath79/generic"
X86 = "x86/64"
ARCH = "mips_24kc"
BOARD = "tplink_archer-c7-v2"
REVISION = "r24106-10cc5fcd00"


def profiles_json(version: str, target: str) -> dict[str, Any]:
    """Return a `profiles.json` as an image builder writes it."""
    is_x86 = target == X86
    profiles: dict[str, Any] = (
        {"generic": {"titles": [{"title": "Generic x86/64"}], "device_packages": ["kmod-e1000"],
                     "supported_devices": [], "image_prefix": f"openwrt-{version}-x86-64-generic",
                     "images": [{"name": "x-combined.img.gz", "type": "combined", "filesystem": "ext4",
                                 "sha256": "0" * 64}]}}
        if is_x86
        else {
            BOARD: {"titles": [{"vendor": "TP-Link", "model": "Archer C7", "variant": "v2"}],
                    "device_packages": ["kmod-ath10k-ct"], "supported_devices": ["tplink,archer-c7-v2", "archer-c7"],
                    "image_prefix": f"openwrt-{version}-ath79-generic-{BOARD}",
                    "images": [{"name": f"openwrt-{version}-{BOARD}-squashfs-sysupgrade.bin", "type": "sysupgrade",
                                "filesystem": "squashfs", "sha256": "1" * 64}]},
            "8dev_carambola2": {"titles": [{"vendor": "8devices", "model": "Carambola 2"}], "device_packages": [],
                                "supported_devices": ["8dev,carambola2"], "image_prefix": "x", "images": []},
        }
    )  # fmt: skip
    return {
        "metadata_version": 1, "target": target, "version_number": version, "version_code": REVISION,
        "source_date_epoch": 1727000000, "arch_packages": "x86_64" if is_x86 else ARCH,
        "default_packages": ["base-files", "busybox", "dnsmasq"], "profiles": profiles,
        "linux_kernel": {"version": "5.15.167", "release": "1", "vermagic": "abc123"},
    }  # fmt: skip


def packages_text(packages: Mapping[str, str], arch: str) -> str:
    """Return a `Packages` file."""
    return "\n".join(
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nSize: {len(name) * 1000}\nDescription: a\n b\n"
        for name, version in packages.items()
    )


class Upstream:
    """A download server in memory, as a fetcher; it knows conditional requests and can be broken."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.bodies_sent = 0
        #: Paths that answer with this status, and whether nothing answers at all.
        self.broken: dict[str, int] = {}
        self.is_down = False
        self.put_versions(stable=STABLE, old="22.03.7", versions=[STABLE, "23.05.4", "22.03.7", "21.02.0"])
        for version in (STABLE, "23.05.4", "22.03.7"):
            self.put_system(f"releases/{version}", version)
        self.put_system("snapshots", "SNAPSHOT")

    def put_versions(self, *, stable: str, old: str, versions: list[str], upcoming: str = "") -> None:
        """Say which releases there are."""
        document = {"stable_version": stable, "oldstable_version": old, "upcoming_version": upcoming,
                    "versions_list": versions}  # fmt: skip
        self.files["/.versions.json"] = json.dumps(document).encode()

    def put_system(self, path: str, version: str) -> None:
        """Add a version with all its files."""
        self.files[f"/{path}/.targets.json"] = json.dumps({TARGET: ARCH, X86: "x86_64"}).encode()
        for target in (TARGET, X86):
            base = f"/{path}/targets/{target}"
            self.files[f"{base}/profiles.json"] = json.dumps(profiles_json(version, target)).encode()
            own = {"base-files": f"1-{version}", "kernel": "5.15", "libc": "1", "kmod-ath10k-ct": "5.15-1"}
            self.files[f"{base}/packages/Packages"] = packages_text(own, ARCH).encode()
            kmods = {"kmod-usb-core": "5.15.167-1", "kmod-e1000": "5.15.167-1"}
            self.files[f"{base}/kmods/5.15.167-1-abc123/index.json"] = json.dumps(
                {"version": 2, "architecture": ARCH, "packages": kmods}
            ).encode()
        for arch in (ARCH, "x86_64"):
            base = f"/{path}/packages/{arch}"
            self.files[f"{base}/feeds.conf"] = b"# feeds\nsrc-git base https://x\nsrc-git packages https://y\n"
            core = {"busybox": "1.36", "dnsmasq": "2.90", "firewall4": "1", "owut": "1", "luci-app-statistics": "2"}
            self.files[f"{base}/base/Packages"] = packages_text(core, arch).encode()
            gone = {"old-vim": "8", "gone": "1", "dns": "1"} if version == "23.05.4" else {}
            more = {
                **gone,
                "vim": "9.0" if gone else "9.1-1",
                "tmux": "3.4",
                "htop": "3.3",
                "libubox20230523": "1",
                "cgi-io": "2",
            }
            document = {"architecture": arch, "packages": more}
            self.files[f"{base}/packages/index.json"] = json.dumps(document).encode()

    def sign(self, secret: UsignSecretKey) -> None:
        """Sign the digests of every target's files."""
        for path in [path for path in self.files if path.endswith("/profiles.json")]:
            base = path.removesuffix("/profiles.json")
            sums = f"{text_hash(self.files[path].decode())} *profiles.json\n".encode()
            self.files[f"{base}/sha256sums"] = sums
            self.files[f"{base}/sha256sums.sig"] = secret.sign(sums).encode()

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer one request."""
        path = request.url.removeprefix(UPSTREAM)
        self.asked.append(path)
        if self.is_down:
            raise UnreachableError(url=request.url, reason="the test cut it off")
        body = self.files.get(path)
        if path in self.broken:
            yield Response(url=request.url, status=self.broken[path], headers={}, body=iter(()))
        elif body is None:
            yield Response(url=request.url, status=404, headers={}, body=iter((b"none",)))
        else:
            etag = f'"{text_hash(body.decode("latin-1"))[:16]}"'
            if request.etag == etag:
                yield Response(url=request.url, status=304, headers={"etag": etag}, body=iter(()))
            else:
                self.bodies_sent += 1
                yield Response(url=request.url, status=200, headers={"etag": etag}, body=iter((body,)))


class LoopThread:
    """Runs coroutines one after the other in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._runner = self._thread.submit(asyncio.Runner).result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns."""
        return self._thread.submit(self._runner.run, coroutine).result()

    def close(self) -> None:
        """End the loop and the thread."""
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


@dataclass
class Reply:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class World:
    """Upstream, server, queue and store."""

    directory: Path
    upstream: Upstream
    server: AsuServer
    queue: BuildQueue
    store: ArtefactStore
    app: ASGIApp
    #: A thread with an event loop of its own, since a browser's test has one running already.
    loop: "LoopThread"
    now: list[float] = field(default_factory=lambda: [1_790_000_000.0])

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, client: str = "192.0.2.1", **headers: str
    ) -> Reply:
        """Send one request; underscores in header names become dashes."""
        return self.loop.run(call(self.app, path, method=method, body=body, client=client, headers=headers))

    def post(self, path: str, document: object, **options: Any) -> Reply:
        """Send JSON."""
        return self.ask(path, method="POST", body=json.dumps(document).encode(), **options)

    def update(self, *, keys: tuple[UsignPublicKey, ...] = ()) -> UpdateResult:
        """Run one update of the catalogue and take its result up."""
        parts = self.server.parts
        updater = CatalogueUpdater(
            parts.catalogue.store,
            parts.settings,
            seeds=parts.catalogue.seeds,
            keys=keys,
            open_fetcher=lambda: self.upstream,
            clock=lambda: self.now[0],
        )
        result = updater.update()
        parts.catalogue.look()
        return result

    def build_next(
        self,
        *,
        images: tuple[str, ...] = ("openwrt-squashfs-sysupgrade.bin",),
        manifest: Mapping[str, str] | None = None,
        failure: BuildFailure | None = None,
        phases: tuple[Phase, ...] = (),
    ) -> None:
        """Be the worker for one build; a stand-in that makes up the bytes of the images."""
        lease = self.queue.lease(worker="stand-in", builders=("openwrt", "debian"))
        assert lease is not None, "nothing waits"
        for phase in phases:
            lease = self.queue.renew(lease, phase=phase)
        self.queue.append_log(lease, "building\n")
        if failure is not None:
            self.queue.finish(lease, failure)
            return
        recipe, name = lease.build.recipe, lease.build.name
        found = dict(manifest or {"base-files": "1", **dict.fromkeys(recipe.packages, "1")})
        with self.store.incoming(name) as directory:
            for image in images:
                (directory / image).write_bytes(f"image {image} of {recipe.key}".encode())
            files: tuple[ArtefactFile, ...] = list_outputs(directory)
            record = ArtefactRecord(
                artefact=name, build_id=lease.build.build_id, recipe=recipe, builder_digest="b" * 64, files=files,
                added_at=self.now[0], expires_at=self.now[0] + 86400,
            )  # fmt: skip
            self.store.add(directory, record)
        profile = profiles_json(recipe.version, TARGET)["profiles"].get(recipe.profile, {})
        document = {**profiles_json(recipe.version, recipe.target), **profile, "id": recipe.profile}
        document.pop("profiles")
        printed = manifest_text(found)
        self.queue.finish(
            lease,
            BuildResult(
                artefact=name, files=files,
                images=tuple(
                    BuiltImage(name=file.name, type="sysupgrade" if "sysupgrade" in file.name else "factory",
                               filesystem="squashfs", sha256=file.sha256, sha256_unsigned=file.sha256)
                    for file in files
                ),
                manifest=found, manifest_sha256=text_hash(printed), builder_digest="b" * 64, document=document,
                command=("make", "image", f"PROFILE={recipe.profile}", f"PACKAGES={' '.join(recipe.packages)}"),
                command_packages=recipe.packages, stdout="made\n", stderr="", build_seconds=2.5, built_at=self.now[0],
            ),
        )  # fmt: skip


def failed(kind: FailureKind, detail: str = "it failed") -> BuildFailure:
    """Return a failure of a kind."""
    return BuildFailure(kind=kind, detail=detail, stderr="some output")


@contextmanager
def asu_world(
    directory: Path,
    *,
    updated: bool = True,
    limits: QueueLimits | None = None,
    queue: BuildQueue | None = None,
    **settings: Any,
) -> Iterator[World]:
    """Make a world below `directory`; further words are settings."""
    now = [1_790_000_000.0]
    queue = queue or MemoryQueue(limits=limits, clock=lambda: now[0])
    store = ArtefactStore(directory / "artefacts")
    server = open_server(
        AsuSettings(enabled=True, upstream_url=UPSTREAM, **settings),
        queue=queue,
        store=store,
        catalogue_directory=directory / "catalogue",
        clock=lambda: now[0],
    )
    with closing(LoopThread()) as loop:
        app = Starlette(routes=server.routes())
        world = World(directory, Upstream(), server, queue, store, app, loop, now)
        if updated:
            _fill(world, settings.get("distributions", ""))
        yield world


_FILLED: dict[str, dict[str, bytes]] = {}


def _fill(world: World, distributions: str) -> None:
    """Give a world the catalogue that an update makes; the same files are made only once."""
    texts = (
        sorted((path.name, path.read_text()) for path in Path(distributions).rglob("*.yml")) if distributions else []
    )
    catalogue = world.directory / "catalogue"
    if str(texts) not in _FILLED:
        world.update()
        _FILLED[str(texts)] = {
            str(path.relative_to(catalogue)): path.read_bytes() for path in catalogue.rglob("*") if path.is_file()
        }
        return
    for name, data in _FILLED[str(texts)].items():
        (catalogue / name).parent.mkdir(parents=True, exist_ok=True)
        (catalogue / name).write_bytes(data)
    world.server.parts.catalogue.look()


async def call(
    app: ASGIApp, path: str, *, method: str, body: bytes | None, client: str, headers: Mapping[str, str]
) -> Reply:
    """Send one request to an ASGI application, without a socket."""
    bare, _question, query = path.partition("?")
    sent: list[dict[str, Any]] = []
    pieces = [body or b""]

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": False}
        await asyncio.Event().wait()  # a client that stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": unquote(bare), "raw_path": bare.encode(errors="replace"),
        "query_string": query.encode(errors="replace"), "root_path": "", "client": (client, 4000),
        "server": ("server.test", 80),
        "headers": [
            (b"host", b"server.test"),
            *((name.lower().replace("_", "-").encode(), value.encode("latin-1", "replace"))
              for name, value in headers.items()),
        ],
    }  # fmt: skip
    await app(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    told = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], named, told)
