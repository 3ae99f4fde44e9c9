"""The seed era's interface, request by request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.asu_world import ARCH, BOARD, REVISION, STABLE, TARGET, X86, World, asu_world, failed

from overhaul.builds.records import QueueLimits
from overhaul.builds.results import FailureKind
from overhaul.dialects.asu import hashes

CONFIG = """\
distro_alias: OpenWrt
distro_description: Linux for routers
latest: 23.05.5
versions: [22.03.7, 23.05.4, 23.05.5, snapshot]
board_rename:
  archer-seven: tplink_archer-c7-v2
"""
CHILD = """\
distro_alias: LibreMesh
latest: dayboot
versions: [dayboot]
"""
CHILD_VERSION = """\
parent_distro: openwrt
parent_version: 23.05.5
repos:
  libremesh: https://feeds.test/{{ version }}/{{ pkg_arch }}
"""
TRANSFORMATIONS = """\
ignore_targets: [x86/64]
transformations:
  old-vim: vim
  gone:
  dns: {dnsmasq: true, tmux: [htop]}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "distributions"
    for name, text in {
        "openwrt/distro_config.yml": CONFIG,
        "openwrt/23.05.5.yml": TRANSFORMATIONS,
        "openwrt/snapshot.yml": "snapshots: true\n",
        "lime/distro_config.yml": CHILD,
        "lime/dayboot.yml": CHILD_VERSION,
        "lede/distro_config.yml": "distro_alias: LEDE\nlatest: 17.01.6\nversions: [17.01.6]\n",
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def world(tmp_path: Path, files: Path) -> Iterator[World]:
    with asu_world(tmp_path, allow_defaults=True, distributions=str(files)) as made:
        yield made


def request(**changes: object) -> dict[str, object]:
    return {"distro": "OpenWrt", "version": STABLE, "target": TARGET, "board": BOARD,
            "packages": ["vim", "tmux"], **changes}  # fmt: skip


@pytest.mark.parametrize("kind", ["upgrade-request", "build-request"])
def test_a_request_waits_builds_and_is_done(world: World, kind: str) -> None:
    first = world.post(f"/api/{kind}", request())
    assert (first.status, first.headers["x-imagebuilder-status"]) == (202, "queue")
    assert first.headers["x-build-queue-position"] == "0"
    name = first.json["request_hash"]
    assert name == hashes.seed_request_hash(
        distro="OpenWrt", version=STABLE, target=TARGET, profile=BOARD, defaults_hash="",
        packages_hash=hashes.seed_packages_hash(["vim", "tmux"]),
    )  # fmt: skip

    lease = world.queue.lease(worker="w", builders=("openwrt",))
    assert lease is not None
    building = world.ask(f"/api/{kind}/{name}")
    assert (building.status, building.headers["x-imagebuilder-status"]) == (202, "building")
    world.queue.give_back(lease)

    world.build_next()
    done = world.ask(f"/api/{kind}/{name}")
    assert done.status == 200
    told = done.json
    assert told["sysupgrade"] == "openwrt-squashfs-sysupgrade.bin"
    assert (told["files"][:6], told["files"][-1]) == ("/json/", "/")
    assert told["log"] == f"/download/{told['files'][6:]}buildlog-{told['image_hash']}.txt"

    # A client of 2019 puts a slash between a path that ends in one and the file.
    image = world.ask(f"{told['files']}/{told['sysupgrade']}")
    assert (image.status, image.headers["content-length"]) == (200, str(len(image.body)))
    listed = world.ask(told["files"]).json
    assert [(one["name"], one["type"]) for one in listed] == [(told["sysupgrade"], "file")]
    assert world.ask(f"/download/{told['files'][6:]}").body.startswith(b"<!doctype html>")
    assert b"### BUILD COMMAND\nmake image" in world.ask(told["log"]).body

    manifest = world.ask(f"/api/image/{told['image_hash']}").json["manifest_hash"]
    assert world.ask(f"/api/manifest/{manifest}").json == {"base-files": "1", "tmux": "1", "vim": "1"}
    packages = hashes.seed_packages_hash(["vim", "tmux"])
    assert world.ask(f"/api/v1/packages_hash/{packages}").json == ["tmux", "vim"]


def test_an_image_is_described_as_clients_show_it(world: World) -> None:
    name = world.post("/api/build-request", request()).json["request_hash"]
    world.build_next()
    image_hash = world.ask(f"/api/build-request/{name}").json["image_hash"]
    image = world.ask(f"/api/image/{image_hash}").json
    assert (image["distro"], image["distro_alias"], image["version"]) == ("openwrt", "OpenWrt", STABLE)
    assert (image["model"], image["profile"], image["target"]) == ("TP-Link Archer C7 v2", BOARD, TARGET)
    assert (image["snapshots"], image["defaults_hash"], image["image_status"]) == (False, None, "untested")
    assert image["image_hash"] == image_hash


def test_both_eras_share_nothing_but_what_is_equal_and_short_names_never_mix_builds(world: World) -> None:
    one = world.post("/api/build-request", request())
    # A stranger who found a request with the same first digits would be given a longer name.
    found = world.queue.find_named(one.json["request_hash"])
    assert found is not None
    other = world.post("/api/build-request", request(packages=["htop"]))
    assert other.json["request_hash"] != one.json["request_hash"]
    assert world.queue.waiting() == 2


def test_a_planted_short_name_does_not_lead_a_victim_to_another_image(world: World) -> None:
    victim = request(packages=["vim"])
    digest = hashes.seed_request_hash(
        distro="OpenWrt", version=STABLE, target=TARGET, profile=BOARD, defaults_hash="",
        packages_hash=hashes.seed_packages_hash(["vim"]),
    )  # fmt: skip
    # The attacker's recipe holds the victim's 12 digits first, as if a collision had been computed.
    attacker = world.post("/api/build-request", request(packages=["tmux"])).json["request_hash"]
    planted = world.queue.find_named(attacker)
    assert planted is not None
    assert world.queue.bind(digest, planted.recipe_key)
    world.build_next()

    answer = world.post("/api/build-request", victim)
    assert answer.status == 202
    assert answer.json["request_hash"] != digest
    assert answer.json["request_hash"].startswith(digest)
    longer = world.queue.find_named(answer.json["request_hash"])
    assert longer is not None
    assert longer.recipe.packages == ("vim",)


@pytest.mark.parametrize(
    ("changes", "error", "legacy"),
    [
        ({"distro": "nothing"}, "unknown distribution nothing", 412),
        ({"version": "1.0"}, "unknown version 1.0", 412),
        ({"target": "no/where"}, "unknown target no/where", 412),
        ({"target": X86}, "target currently not supported x86/64", 412),
        ({"board": "nothing"}, "unknown device, please check model and board params", 412),
        ({"distro": None}, "missing parameter distro", 412),
        ({"target": None}, "missing parameter target", 412),
        ({"defaults": "x" * 20_000}, "attached defaults exceed max size", 420),
    ],
)
def test_what_is_unknown_is_400_as_documented_or_412_as_it_was(
    world: World, tmp_path: Path, files: Path, changes: dict[str, object], error: str, legacy: int
) -> None:
    refused = world.post("/api/upgrade-request", request(**changes))
    assert refused.json["error"] == error
    assert refused.status == (420 if legacy == 420 else 400)
    if "missing" in error:
        assert refused.headers["x-missing-param"] == error.rpartition(" ")[2]
    with asu_world(tmp_path / "old", allow_defaults=True, distributions=str(files), seed_legacy_status=True) as old:
        assert old.post("/api/upgrade-request", request(**changes)).status == legacy


def test_unknown_packages_are_named_in_the_header_that_a_client_needs(world: World) -> None:
    refused = world.post("/api/upgrade-request", request(packages=["vim", "zz-none", "aa-none"]))
    assert refused.status == 422
    assert refused.headers["x-unknown-package"] == "aa-none, zz-none"
    assert refused.json["error"] == "could not find packages: aa-none, zz-none"
    evil = world.post("/api/upgrade-request", request(packages=["$(id)", "a\r\nX-Evil: 1"]))
    assert evil.status == 422
    assert "x-evil" not in evil.headers
    assert "\n" not in evil.headers["x-unknown-package"]
    assert world.queue.waiting() == 0


def test_built_in_packages_are_not_asked_for_and_removals_exist(world: World) -> None:
    world.post("/api/build-request", request(packages=["libc", "kernel", "libgcc", "-dnsmasq", "vim"]))
    (build,) = world.queue.recent(limit=5)
    assert build.recipe.packages == ("-dnsmasq", "vim")
    assert build.recipe.diff_packages
    world.post("/api/build-request", request(packages=[]))
    assert not world.queue.recent(limit=1)[0].recipe.diff_packages


@pytest.mark.parametrize(
    ("board", "profile"),
    [(BOARD, BOARD), ("tplink,archer-c7-v2", BOARD), ("archer-seven", BOARD), ("8dev,carambola2", "8dev_carambola2")],
)
def test_boards_are_found_by_name_alias_and_rename(world: World, board: str, profile: str) -> None:
    world.post("/api/build-request", request(board=board))
    assert world.queue.recent(limit=1)[0].recipe.profile == profile


def test_a_model_finds_the_device_when_its_board_does_not(world: World) -> None:
    world.post("/api/build-request", request(board="unheard", model="8DEVICES carambola 2"))
    assert world.queue.recent(limit=1)[0].recipe.profile == "8dev_carambola2"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.IMPOSSIBLE_PACKAGES, 409),
        (FailureKind.TOO_BIG, 413),
        (FailureKind.BUILD_FAILED, 500),
        (FailureKind.WORKER_LOST, 500),
    ],
)
def test_failures_have_the_statuses_of_the_table_and_a_log(world: World, kind: FailureKind, status: int) -> None:
    name = world.post("/api/build-request", request()).json["request_hash"]
    world.build_next(failure=failed(kind, "too bad"))
    told = world.ask(f"/api/build-request/{name}")
    assert (told.status, told.json["error"]) == (status, "too bad")
    assert told.json["log"] == f"/download/faillogs/faillog-{name}.txt"
    assert b"some output\ntoo bad" in world.ask(told.json["log"]).body


def test_an_image_that_cannot_upgrade_is_an_error_only_for_who_wants_to_upgrade(world: World) -> None:
    name = world.post("/api/build-request", request()).json["request_hash"]
    world.build_next(images=("openwrt-squashfs-factory.img",))
    assert world.ask(f"/api/upgrade-request/{name}").status == 501
    done = world.ask(f"/api/build-request/{name}")
    assert done.status == 200
    assert "sysupgrade" not in done.json
    assert {"files", "log", "image_hash"} <= done.json.keys()


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with asu_world(tmp_path, limits=QueueLimits(waiting=1)) as world:
        assert world.post("/api/build-request", request(distro="openwrt")).status == 202
        full = world.post("/api/build-request", request(distro="openwrt", packages=["vim"]))
        assert (full.status, full.headers["retry-after"]) == (503, "300")


def test_images_with_defaults_are_found_only_by_who_knows_the_script(world: World) -> None:
    script = "uci set wireless.key=secret\n"
    name = world.post("/api/build-request", request(defaults=script)).json["request_hash"]
    world.build_next()
    told = world.ask(f"/api/build-request/{name}").json
    digest = hashes.seed_defaults_hash(script)
    assert told["files"].startswith(f"/json/custom/{digest}/openwrt/{STABLE}/")
    assert world.ask(told["files"]).status == 200
    assert world.ask(told["files"].replace(digest, digest[:-1] + "0")).status == 404
    for path in ("/json/custom/", "/json/custom", "/download/custom/", f"/json/custom/{digest}/", "/json/"):
        assert world.ask(path).status == 404
    for path in ("images_latest", "fails_latest"):
        assert world.ask(f"/api/v1/stats/{path}").json == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b'{"packages": "vim"}',
                                  b'{"board": 1}', b'{"distro": "a\\nb"}'])  # fmt: skip
@pytest.mark.parametrize("path", ["upgrade-check", "upgrade-request", "build-request"])
def test_what_is_no_request_is_400_with_an_empty_list(world: World, path: str, body: bytes) -> None:
    refused = world.ask(f"/api/{path}", method="POST", body=body)
    assert (refused.status, refused.body) == (400, b"[]")


def test_json_is_read_under_any_type(world: World) -> None:
    for kind in ("text/json", "application/x-www-form-urlencoded", "nonsense"):
        assert world.post("/api/build-request", request(), content_type=kind).status == 202


def test_a_request_hash_in_the_body_is_a_mere_look_up(world: World) -> None:
    assert world.post("/api/build-request", {"request_hash": "0" * 12}).status == 404
    name = world.post("/api/build-request", request()).json["request_hash"]
    assert world.post("/api/build-request", {"request_hash": name}).status == 202
    for unknown in ("0" * 12, "x", "../../x", "image." + "0" * 15):
        assert world.ask(f"/api/build-request/{unknown}").status == 404


def test_a_newer_release_is_offered_with_the_packages_it_needs(world: World) -> None:
    installed = {"vim": "9.0", "old-vim": "8", "gone": "1", "dns": "1", "kernel": "5", "busybox": "1.36"}
    check = {"distro": "OpenWrt", "version": "23.05.4", "target": TARGET, "installed": installed}
    told = world.post("/api/upgrade-check", check)
    assert told.status == 200
    assert told.json["version"] == STABLE
    assert told.json["packages"] == ["busybox", "dnsmasq", "vim"]
    assert told.json["upgrades"] == {"vim": ["9.1-1", "9.0"]}
    chosen = world.post("/api/upgrade-check", {**check, "installed": {"dns": "1", "htop": "3.3"}})
    assert chosen.json["packages"] == ["htop", "tmux"]


def test_the_latest_release_is_204_unless_packages_are_newer_and_asked_for(world: World) -> None:
    check = {"distro": "openwrt", "version": STABLE, "target": TARGET, "installed": {"vim": "1.0"}}
    current = world.post("/api/upgrade-check", check)
    assert (current.status, current.body) == (204, b"")
    assert len(current.headers["x-request-hash"]) == 12
    newer = world.post("/api/upgrade-check", {**check, "upgrade_packages": 1})
    assert (newer.status, newer.json["upgrades"]) == (200, {"vim": ["9.1-1", "1.0"]})
    unknown = world.post("/api/upgrade-check", {**check, "installed": {"no-such": "1"}})
    assert (unknown.status, unknown.headers["x-unknown-package"]) == (422, "no-such")


def test_a_snapshot_is_compared_by_revision(world: World) -> None:
    check = {"distro": "openwrt", "version": "SNAPSHOT", "target": TARGET}
    world.upstream.put_versions(stable=STABLE, old="", versions=[STABLE])
    told = world.post("/api/upgrade-check", {**check, "revision": "r1-old"})
    assert (told.status, told.json["revision"]) == (200, REVISION)
    assert world.post("/api/upgrade-check", {**check, "revision": REVISION}).status == 204


def test_without_a_version_the_latest_is_named(world: World) -> None:
    assert world.post("/api/upgrade-check", {"distro": "openwrt", "target": TARGET}).json == {"version": STABLE}
    missing = world.post("/api/upgrade-check", {"distro": "openwrt"})
    assert (missing.status, missing.headers["x-missing-param"]) == (400, "target")


def test_a_distribution_is_built_with_its_parents_image_builder_and_its_own_packages(world: World) -> None:
    answer = world.post("/api/build-request", request(distro="lime", version="dayboot"))
    assert answer.status == 202
    (build,) = world.queue.recent(limit=1)
    assert (build.recipe.distribution, build.recipe.version) == ("openwrt", STABLE)
    assert build.recipe.repositories == (("libremesh", f"https://feeds.test/dayboot/{ARCH}"),)
    world.build_next()
    told = world.ask(f"/api/build-request/{answer.json['request_hash']}").json
    assert told["files"].startswith("/json/lime/dayboot/")
    assert world.ask(f"/api/image/{told['image_hash']}").json["distro_alias"] == "LibreMesh"


def test_look_ups_have_the_shapes_that_clients_read(world: World) -> None:
    assert {one["distro"]: one["latest"] for one in world.ask("/api/distros").json} == {
        "openwrt": STABLE, "lime": "dayboot", "lede": "17.01.6",
    }  # fmt: skip
    versions = world.ask("/api/versions?distro=openwrt").json
    assert [one["version"] for one in versions] == ["22.03.7", "23.05.4", STABLE, "snapshot"]
    assert [one["snapshots"] for one in versions] == [False, False, False, True]
    models = world.ask(f"/api/models?distro=openwrt&version={STABLE}&model_search=archer").json
    assert [(one["profile"], one["model"], one["target"]) for one in models] == [
        (BOARD, "TP-Link Archer C7 v2", TARGET)
    ]
    assert len(world.ask(f"/api/models?distro=openwrt&version={STABLE}&model_search=").json) == 2
    packages = world.ask(f"/api/packages_image?distro=openwrt&version={STABLE}&target={TARGET}&profile={BOARD}").json
    assert packages == ["base-files", "busybox", "dnsmasq", "kmod-ath10k-ct"]
    nested = world.ask("/api/distributions").json["openwrt"]
    assert nested["versions"][STABLE]["version_description"]
    assert {(one["version"], one["target"]) for one in world.ask("/api/v1/supported").json} >= {(STABLE, TARGET)}
    for path in ("models", "packages_image", "models?distro=openwrt", "models?distro=x&version=y&model_search="):
        assert (world.ask(f"/api/{path}").status, world.ask(f"/api/{path}").body) == (400, b"[]")
    for path in ("image", "manifest", "v1/packages_hash"):
        assert world.ask(f"/api/{path}/000000000000").status == 404


def test_the_2020_shape_of_versions_can_be_chosen(tmp_path: Path) -> None:
    with asu_world(tmp_path, versions_shape="branches") as world:
        branches = world.ask("/api/versions").json["branches"]
        assert {one["name"]: one["latest"] for one in branches}["23.05"] == STABLE


def test_statistics_count_what_was_built(world: World) -> None:
    world.post("/api/build-request", request())
    world.build_next()
    world.now[0] += 61
    assert world.ask("/api/v1/stats/popular_packages").json[0]["count"] == 1
    assert world.ask("/api/v1/stats/popular_targets").json == [{"count": 1, "build_seconds": 2, "target": TARGET}]
    for path in ("images", "image_stats"):
        assert world.ask(f"/api/v1/stats/{path}").json == {"total": 1, "stored": 1, "requested": 0}
    assert world.ask("/api/v1/stats/packages").json > 5
    assert world.ask("/api/v1/stats/images_latest").json[0]["profile"] == BOARD


@pytest.mark.parametrize(
    "path",
    ["../../../etc/passwd", "openwrt/23.05.5/ath79/generic/x/y/../../z", "%2e%2e/", "faillogs/faillog-../../x.txt",
     "faillogs/", "custom//x", "//etc/passwd", "faillogs/faillog-000000000000.txt"],
)  # fmt: skip
def test_no_path_leads_out_of_what_was_built(world: World, path: str) -> None:
    for root in ("json", "download"):
        assert world.ask(f"/{root}/{path}").status == 404


@pytest.mark.parametrize(
    "text", ["versions: 5", "- a", "distro_alias: [1]", "versions: ['../x']", ": :", "!!python/x a"]
)
def test_a_distributions_file_that_means_nothing_is_named(tmp_path: Path, text: str) -> None:
    from overhaul.dialects.asu.distributions import DistributionError, load_distributions

    (tmp_path / "one").mkdir()
    (tmp_path / "one/distro_config.yml").write_text(text)
    with pytest.raises(DistributionError, match=r"distro_config\.yml"):
        load_distributions(tmp_path)


def test_the_distribution_files_among_the_examples_can_be_used() -> None:
    from overhaul.dialects.asu.distributions import load_distributions

    directory = Path(__file__).parents[4] / "examples/asu/distributions"
    found = load_distributions(directory)
    assert set(found) == {"openwrt", "lede", "lime"}
    version = found["lime"].version("2024.1")
    assert version is not None
    assert version.parent == ("openwrt", STABLE)
    (rules,) = found["openwrt"].crossed(installed="22.03.7", destination=STABLE)
    assert rules["openvpn"].of({"openvpn", "polarssl"}) == ("openvpn-mbedtls",)
