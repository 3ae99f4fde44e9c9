"""The device's side: both eras' servers, what it shows, what it refuses, how it installs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.asgi import Site, running
from tests.asu_world import BOARD, REVISION, STABLE, TARGET, World, asu_world

from overhaul.dialects.asu.device.changes import described
from overhaul.dialects.asu.device.facts import FactsError, SystemFacts, debian_facts, openwrt_facts
from overhaul.dialects.asu.device.installing import (
    NoFileSystemError,
    OpenWrtInstaller,
    SlotInstaller,
    UnconfirmedSystemError,
)
from overhaul.dialects.asu.device.seed import SeedService
from overhaul.dialects.asu.device.service import (
    BuildFailedOnServerError,
    Finished,
    HttpAnswer,
    RefusedByServerError,
    ServerAnswerError,
    UnsafeAnswerError,
    UrllibHttp,
    Wanted,
)
from overhaul.dialects.asu.device.settings import (
    SysupgradeSettings,
    SysupgradeSettingsError,
    load_sysupgrade_settings,
)
from overhaul.dialects.asu.device.today import TodayService
from overhaul.dialects.asu.device.upgrading import TooLateError, Upgrade
from overhaul.dialects.asu.device.verifying import UnsignedImageError, signed_digest
from overhaul.errors import OverhaulError
from overhaul.install.fileboot import FileBoot
from overhaul.install.settings import DeviceSettings, RepositorySettings
from overhaul.install.state import Phase, StateFile
from overhaul.progress import Silence
from overhaul.release.record import ReleaseId
from overhaul.transfer.fetcher import InsecureAddressError
from overhaul.trust.usign import UsignSignatureError, generate_usign_key

FACTS = SystemFacts(
    distribution="openwrt", version="23.05.4", revision="r23809-234f1a2efa", target=TARGET, board=BOARD,
    model="TP-Link Archer C7 v2", filesystem="squashfs", packages={"vim": "9.0", "htop": "3.3", "busybox": "1.36"},
)  # fmt: skip


class Sysupgrade:
    """Stands in for OpenWrt's `sysupgrade`: notes how it is called."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> bytes:
        self.calls.append(list(argv))
        return b""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asu_world(tmp_path) as made:
        yield made


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with running(world.app) as running_site:
        yield running_site


def upgrade_of(site: Site, tmp_path: Path, world: World, *, era: str = "today", **changes: Any) -> Upgrade:
    server = site.url.rstrip("/")
    http = UrllibHttp(allow_http=True)
    settings = SysupgradeSettings(
        server=server, allow_http=True, directory=str(tmp_path / "fetched"), **changes.pop("settings", {})
    )
    return Upgrade(
        settings,
        facts=changes.pop("facts", FACTS),
        service=TodayService(http, server) if era == "today" else SeedService(http, server, distribution="openwrt"),
        http=http,
        installer=changes.pop("installer", OpenWrtInstaller(ask=Sysupgrade())),
        sleep=lambda _seconds: world.build_next(),
        **changes,
    )


def test_a_device_is_told_what_is_newer_and_what_would_change(site: Site, tmp_path: Path, world: World) -> None:
    checked = upgrade_of(site, tmp_path, world).check(add=("tmux",), remove=("htop",))
    assert (checked.newest.version, checked.newest.revision) == (STABLE, REVISION)
    assert described(checked.changes) == [
        f"23.05.4 (r23809-234f1a2efa) -> {STABLE} ({REVISION})",
        "  upgrade  vim  9.0 -> 9.1-1",
        "  add      tmux",
        "  remove   htop",
    ]


def test_packages_that_got_another_name_are_asked_for_by_the_new_one(site: Site, tmp_path: Path, world: World) -> None:
    old = replace(FACTS, version="22.03.7", revision="r1-old", packages={"firewall": "1", "vim": "9.1-1"})
    checked = upgrade_of(site, tmp_path, world, facts=old).check()
    assert checked.newest.packages == ("firewall4", "vim")
    assert "  replace  firewall by firewall4" in described(checked.changes)


def test_a_device_that_is_up_to_date_says_so(site: Site, tmp_path: Path, world: World) -> None:
    current = replace(FACTS, version=STABLE, revision=REVISION, packages={"vim": "9.1-1"})
    checked = upgrade_of(site, tmp_path, world, facts=current).check()
    assert not checked.changes.is_any
    assert described(checked.changes) == [f"{STABLE} ({REVISION}) is up to date."]


def test_the_image_is_built_fetched_verified_and_handed_to_sysupgrade(site: Site, tmp_path: Path, world: World) -> None:
    sysupgrade = Sysupgrade()
    upgrade = upgrade_of(site, tmp_path, world, installer=OpenWrtInstaller(ask=sysupgrade))
    states: list[str] = []
    wanted = upgrade.wanted(upgrade.check())
    fetched = upgrade.fetch(upgrade.build(wanted, tell=states.append), wanted)
    assert states == ["waits, 0 before it"]
    assert fetched.path.read_bytes().startswith(b"image openwrt-squashfs-sysupgrade.bin")
    assert not fetched.is_signed
    path = str(fetched.path)
    assert upgrade.install(fetched, progress=Silence()) == "The device restarts with the new image."
    assert sysupgrade.calls == [["sysupgrade", "--test", path], ["sysupgrade", path]]


def test_a_server_of_the_seed_era_is_spoken_to_as_well(site: Site, tmp_path: Path, world: World) -> None:
    upgrade = upgrade_of(site, tmp_path, world, era="seed")
    checked = upgrade.check()
    assert (checked.newest.version, checked.changes.upgraded) == (STABLE, {"vim": ("9.0", "9.1-1")})
    finished = upgrade.build(upgrade.wanted(checked), tell=lambda _state: None)
    assert finished.sha256 is None
    with pytest.raises(OverhaulError, match="nothing can be verified"):
        upgrade.fetch(finished, upgrade.wanted(checked))


def test_a_build_that_fails_or_cannot_be_is_explained(site: Site, tmp_path: Path, world: World) -> None:
    from tests.asu_world import failed

    from overhaul.builds.results import FailureKind

    upgrade = upgrade_of(site, tmp_path, world)
    checked = upgrade.check(add=("no-such-package",))
    with pytest.raises(RefusedByServerError, match="no-such-package"):
        upgrade.build(upgrade.wanted(checked), tell=lambda _state: None)
    upgrade._sleep = lambda _seconds: world.build_next(failure=failed(FailureKind.TOO_BIG, "it exceeds the storage"))
    with pytest.raises(BuildFailedOnServerError, match="it exceeds the storage"):
        upgrade.build(upgrade.wanted(upgrade.check()), tell=lambda _state: None)


def test_a_build_that_takes_too_long_is_given_up(site: Site, tmp_path: Path, world: World) -> None:
    times = iter(range(0, 100_000, 1000))
    upgrade = upgrade_of(site, tmp_path, world, monotonic=lambda: float(next(times)))
    upgrade._sleep = lambda _seconds: None
    with pytest.raises(TooLateError, match="goes on by itself"):
        upgrade.build(upgrade.wanted(upgrade.check()), tell=lambda _state: None)


def test_bytes_that_are_not_those_announced_are_not_kept(site: Site, tmp_path: Path, world: World) -> None:
    upgrade = upgrade_of(site, tmp_path, world)
    wanted = upgrade.wanted(upgrade.check())
    finished = upgrade.build(wanted, tell=lambda _state: None)
    with pytest.raises(OverhaulError, match="digest"):
        upgrade.fetch(replace(finished, sha256="0" * 64), wanted)
    assert list((tmp_path / "fetched").iterdir()) == []


class SignedDirectory:
    """An Http that serves what a signer wrote beside an image."""

    def __init__(self, **recipe: object) -> None:
        self.secret = generate_usign_key()
        known = {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim"], "revision": ""}
        statement = {"format": 1, "recipe": {**known, **recipe}, "files": [{"name": "image.bin", "sha256": "a" * 64}]}
        self.files = {"build.json": json.dumps(statement).encode()}
        self.files["build.json.sig"] = self.secret.sign(self.files["build.json"]).encode()

    def ask(self, method: str, url: str, document: object = None) -> HttpAnswer:
        found = self.files.get(url.rpartition("/")[2])
        return HttpAnswer(status=200 if found else 404, headers={}, body=found or b"")


WANTED = Wanted(
    distribution="openwrt", version=STABLE, revision=REVISION, target=TARGET, board=BOARD, packages=("libc", "vim")
)
FINISHED = Finished(name="x", directory_url="https://s/store/x", file="image.bin", sha256="b" * 64, manifest={})


def test_with_a_key_the_signed_digest_counts_and_not_the_announced_one() -> None:
    http = SignedDirectory()
    assert signed_digest(FINISHED, WANTED, (http.secret.public,), http) == "a" * 64


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"version": "22.03.7"}, "version '22.03.7'"),
        ({"target": "x86/64"}, "target 'x86/64'"),
        ({"packages": ["vim", "backdoor"]}, "--add backdoor"),
        ({"packages": []}, "--remove vim"),
        ({"defaults": "echo"}, "first-boot script"),
        ({"revision": "r1-evil"}, "revision"),
        ({"repositories": [["evil", "https://evil"]]}, "repositories that nobody asked for"),
    ],
)
def test_an_image_signed_for_something_else_is_refused(recipe: dict[str, object], reason: str) -> None:
    http = SignedDirectory(**recipe)
    with pytest.raises(UnsignedImageError, match=reason):
        signed_digest(FINISHED, WANTED, (http.secret.public,), http)


def test_a_strangers_or_no_signature_is_refused() -> None:
    http = SignedDirectory()
    with pytest.raises(UsignSignatureError):
        signed_digest(FINISHED, WANTED, (generate_usign_key().public,), http)
    http.files["build.json"] += b" "
    with pytest.raises(UsignSignatureError):
        signed_digest(FINISHED, WANTED, (http.secret.public,), http)
    del http.files["build.json.sig"]
    with pytest.raises(OverhaulError, match="404"):
        signed_digest(FINISHED, WANTED, (http.secret.public,), http)
    other = replace(FINISHED, file="other.bin")
    whole = SignedDirectory()
    with pytest.raises(UnsignedImageError, match="not among the files"):
        signed_digest(other, WANTED, (whole.secret.public,), whole)


class Liar:
    """An Http whose server says whatever a test wants."""

    def __init__(self, status: int, document: object, **headers: str) -> None:
        self.answer = HttpAnswer(status=status, headers=headers, body=msgspec.json.encode(document))

    def ask(self, method: str, url: str, document: object = None) -> HttpAnswer:
        return self.answer


def _answer(**changes: object) -> dict[str, object]:
    image = {"name": "image.bin", "type": "sysupgrade", "filesystem": "squashfs", "sha256": "a" * 64}
    return {"request_hash": "c" * 64, "bin_dir": "c" * 64, "images": [image], "version_code": REVISION, **changes}


@pytest.mark.parametrize(
    "document",
    [
        _answer(bin_dir="../../etc"),
        _answer(bin_dir="/etc"),
        _answer(bin_dir="a//b"),
        _answer(bin_dir=5),
        _answer(request_hash="a/b"),
        _answer(images=[{"name": "../image", "type": "sysupgrade", "sha256": "a" * 64}]),
        _answer(images=[{"name": "image", "type": "sysupgrade", "sha256": "A" * 64}]),
        _answer(images=[{"name": "image", "type": "sysupgrade"}]),
        _answer(images=[]),
        _answer(images="x"),
        _answer(version_code="r1-other"),
    ],
)
def test_a_server_that_names_other_places_or_things_is_not_believed(document: dict[str, object]) -> None:
    with pytest.raises((UnsafeAnswerError, ServerAnswerError)):
        TodayService(Liar(200, document), "https://s").request(WANTED)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"[" * 10_000, b"\xff"])
@pytest.mark.parametrize("status", [200, 202, 400, 404, 422, 500])
def test_what_is_no_answer_is_told_as_such(status: int, body: bytes) -> None:
    liar = Liar(status, None)
    liar.answer = HttpAnswer(status=status, headers={}, body=body)
    for service in (TodayService(liar, "https://s"), SeedService(liar, "https://s", distribution="openwrt")):
        with pytest.raises(OverhaulError):
            service.request(WANTED)


def test_plain_http_needs_the_owners_word() -> None:
    with pytest.raises(InsecureAddressError):
        UrllibHttp().ask("GET", "http://127.0.0.1:1/")


def test_openwrt_tells_its_facts_over_ubus() -> None:
    board = {"board_name": "tplink,archer-c7-v2", "model": "TP-Link", "rootfs_type": "squashfs",
             "release": {"distribution": "OpenWrt", "version": STABLE, "target": TARGET,
                         "revision": REVISION}}  # fmt: skip

    def ask(argv: Sequence[str]) -> bytes:
        return json.dumps(board if "system" in argv else {"packages": {"vim": "9"}}).encode()

    facts = openwrt_facts(ask)
    assert (facts.distribution, facts.board, facts.packages) == ("openwrt", "tplink,archer-c7-v2", {"vim": "9"})
    with pytest.raises(FactsError):
        openwrt_facts(lambda _argv: b"{}")


def test_settings_come_from_a_file_or_a_server_alone(tmp_path: Path) -> None:
    path = tmp_path / "sysupgrade.toml"
    with pytest.raises(SysupgradeSettingsError, match="No such file"):
        load_sysupgrade_settings(path)
    assert load_sysupgrade_settings(path, server="https://s/").server == "https://s"
    path.write_text('server = "https://file"\nusign_keys = ["key.pub"]\n')
    assert load_sysupgrade_settings(path).usign_keys == ("key.pub",)
    assert load_sysupgrade_settings(path, server="https://other", allow_http=True).allow_http
    for text in ("server = 5", 'server = "ftp://x"', "unknown = 1", "[", 'server = "https://x"\npoll_every_s = 0'):
        path.write_text(text)
        with pytest.raises(SysupgradeSettingsError):
            load_sysupgrade_settings(path)


@pytest.fixture
def device(tmp_path: Path) -> DeviceSettings:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n')
    for name in ("A", "B"):
        (tmp_path / f"slot-{name}").write_bytes(b"old" * 10_000 + b"\0" * 200_000)
    settings = DeviceSettings(
        product="kiosk", variant="lobby", arch="amd64", repository=RepositorySettings(urls=("https://r",)),
        slots={"A": str(tmp_path / "slot-A"), "B": str(tmp_path / "slot-B")},
        state_directory=str(tmp_path / "state"), facts_root=str(tmp_path),
    )  # fmt: skip
    return msgspec.structs.replace(
        settings, boot=msgspec.structs.replace(settings.boot, backend="file", file=str(tmp_path / "boot.json"))
    )


RELEASE = ReleaseId(product="kiosk", variant="lobby", arch="amd64", version="bookworm", build_id="b1")


def ext4_like(path: Path) -> tuple[Path, str]:
    """Write bytes that begin as an ext4 image does; what is behind does not matter here."""
    import hashlib

    data = bytearray(b"\x01" * 150_001)
    data[1080:1082] = b"\x53\xef"
    data[8192:73728] = bytes(65536)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_an_image_goes_into_the_idle_slot_and_is_tried_next(device: DeviceSettings, tmp_path: Path) -> None:
    boot = FileBoot(Path(device.boot.file), ("A", "B"))
    boot.mark_good("A")
    boot.simulate_boot()
    image, digest = ext4_like(tmp_path / "image")
    before = (tmp_path / "slot-A").read_bytes()
    installer = SlotInstaller(device, boot=boot, clock=lambda: 1000.0)
    installer.test(image)
    said = installer.install(image, sha256=digest, release=RELEASE, progress=Silence())
    assert said == "Slot B holds the image; restart the device to try it."
    assert (tmp_path / "slot-B").read_bytes()[:150_001] == image.read_bytes()
    assert (tmp_path / "slot-A").read_bytes() == before
    state = StateFile(tmp_path / "state").load()
    assert state.phase is Phase.AWAITING_REBOOT
    assert state.slots["B"].release == RELEASE
    assert boot.primary() == "B"


def test_nothing_is_armed_when_the_bytes_changed_or_the_system_is_unconfirmed(
    device: DeviceSettings, tmp_path: Path
) -> None:
    boot = FileBoot(Path(device.boot.file), ("A", "B"))
    boot.mark_good("A")
    boot.simulate_boot()
    image, _digest = ext4_like(tmp_path / "image")
    installer = SlotInstaller(device, boot=boot)
    with pytest.raises(NoFileSystemError):
        installer.install(image, sha256="0" * 64, release=RELEASE, progress=Silence())
    assert boot.primary() == "A"
    assert boot.state("B").status.value == "bad"
    boot.try_next("B", attempts=3)
    boot.simulate_boot()
    with pytest.raises(UnconfirmedSystemError):
        installer.install(image, sha256="0" * 64, release=RELEASE, progress=Silence())


def test_what_is_no_file_system_or_too_big_is_refused_before_anything_is_written(
    device: DeviceSettings, tmp_path: Path
) -> None:
    boot = FileBoot(Path(device.boot.file), ("A", "B"))
    installer = SlotInstaller(device, boot=boot)
    junk = tmp_path / "junk"
    junk.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(NoFileSystemError):
        installer.test(junk)
    image, _digest = ext4_like(tmp_path / "image")
    with image.open("ab") as stream:
        stream.truncate(1_000_000)
    with pytest.raises(OverhaulError, match="needs 1000000"):
        installer.test(image)


def test_debian_tells_its_suite_and_what_somebody_installed(device: DeviceSettings) -> None:
    def ask(argv: Sequence[str]) -> bytes:
        if argv[0] == "apt-mark":
            return b"vim\ng++\ngone\n"
        return b"ii \tvim\t2:9.0\nii \tg++\t12\nii \tlibc6\t2.36\nrc \tgone\t1\n"

    facts = debian_facts(device, ask=ask)
    assert (facts.distribution, facts.version, facts.target, facts.board) == (
        "debian", "bookworm", "debian/amd64", "kiosk",
    )  # fmt: skip
    assert facts.packages == {"vim": "2:9.0", "g++": "12"}


def test_a_debian_device_gets_its_own_image_into_its_idle_slot(device: DeviceSettings, tmp_path: Path) -> None:
    from overhaul.dialects.asu.settings import DebianProduct

    boot = FileBoot(Path(device.boot.file), ("A", "B"))
    boot.mark_good("A")
    boot.simulate_boot()
    facts = SystemFacts(
        distribution="debian", version="bookworm", revision="", target="debian/amd64", board="kiosk", model="kiosk",
        filesystem=None, packages={"vim": "9", "g++": "12"},
    )  # fmt: skip
    products = {"kiosk": DebianProduct(suites=("bookworm",), architectures=("amd64",))}
    with asu_world(tmp_path / "world", debian=products) as world, running(world.app) as site:
        upgrade = upgrade_of(
            site, tmp_path, world, facts=facts, installer=SlotInstaller(device, boot=boot), product=RELEASE
        )
        wanted = upgrade.wanted(upgrade.check())
        finished = upgrade.build(wanted, tell=lambda _state: None)
        (build,) = world.queue.recent(limit=2)
        recipe = build.recipe
        assert (recipe.builder, recipe.version, recipe.target, recipe.profile) == (
            "debian", "bookworm", "amd64", "kiosk",
        )  # fmt: skip
        assert recipe.packages == ("g++", "vim")
        with pytest.raises(NoFileSystemError):
            # The stand-in for the builder makes no file system, and that is noticed.
            upgrade.install(upgrade.fetch(finished, wanted), progress=Silence())
        for changes in ({"board": "other"}, {"version": "sid"}, {"target": "debian/armhf"}):
            with pytest.raises(RefusedByServerError):
                upgrade.build(replace(wanted, **changes), tell=lambda _state: None)  # type: ignore[arg-type]
