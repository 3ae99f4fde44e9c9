"""Today's interface, request by request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.asu_world import BOARD, REVISION, STABLE, TARGET, X86, World, asu_world, failed

from overhaul.builds.records import QueueLimits
from overhaul.builds.results import FailureKind, Phase
from overhaul.dialects.asu.resolving import is_allowed
from overhaul.dialects.asu.today_api import client_label

BUILD = "/api/v1/build"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asu_world(tmp_path, allow_defaults=True, repository_allow_list=("https://feeds.test/good",)) as made:
        yield made


def request(**changes: object) -> dict[str, object]:
    return {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim", "tmux"], **changes}


def test_a_build_goes_from_the_queue_through_its_phases_to_files(world: World) -> None:
    first = world.post(BUILD, request(client="owut/1.0"))
    assert (first.status, first.json["detail"], first.json["queue_position"]) == (202, "queued", 0)
    assert first.headers["x-imagebuilder-status"] == "queued"
    name = first.json["request_hash"]

    lease = world.queue.lease(worker="w", builders=("openwrt",))
    assert lease is not None
    world.queue.renew(lease, phase=Phase.BUILDING_IMAGE)
    started = world.ask(f"{BUILD}/{name}")
    assert (started.status, started.json["detail"], started.json["imagebuilder_status"]) == (
        202, "started", "building_image",
    )  # fmt: skip
    assert "queue_position" not in started.json
    world.queue.give_back(lease)

    world.build_next()
    done = world.ask(f"{BUILD}/{name}")
    assert (done.status, done.json["detail"], done.json["status"]) == (200, "done", 200)
    assert done.json["bin_dir"] == done.json["request_hash"] == name
    assert done.json["version_code"] == REVISION
    assert done.json["id"] == BOARD
    assert done.json["build_at"] == "2024-09-22T10:13:20.000000Z"
    assert done.json["request"]["packages"] == ["vim", "tmux"]
    image = done.json["images"][0]
    file = world.ask(f"/store/{name}/{image['name']}")
    assert file.status == 200
    assert file.headers["content-length"] == str(len(file.body))
    assert file.headers["x-content-type-options"] == "nosniff"
    assert file.headers["content-type"] == "application/octet-stream"
    part = world.ask(f"/store/{name}/{image['name']}", range="bytes=2-5")
    assert (part.status, part.body) == (206, file.body[2:6])
    head = world.ask(f"{BUILD}/{name}", method="HEAD")
    assert (head.status, head.body, head.headers["x-imagebuilder-status"]) == (200, b"", "done")


def test_the_same_request_again_is_answered_from_the_cache_whatever_its_order(world: World) -> None:
    name = world.post(BUILD, request()).json["request_hash"]
    world.build_next()
    for packages in (["vim", "tmux"], ["tmux", "vim"], ["vim", "tmux", "tmux"]):
        again = world.post(BUILD, request(packages=packages))
        assert (again.status, again.json["request_hash"]) == (200, name)
    assert world.queue.waiting() == 0
    world.post(BUILD, request())
    world.server.parts.tell_hits()
    found = world.queue.find_named(name)
    assert found is not None
    assert found.requests >= 5


def test_two_requests_with_one_public_name_never_share_an_answer(world: World) -> None:
    # The public name has no separators, so moving a character between two fields does not change it.
    world.upstream.put_versions(stable="23.05.1", old="", versions=["23.05.1", "23.05.12"])
    for version in ("23.05.1", "23.05.12"):
        world.upstream.put_system(f"releases/{version}", version)
    world.update()
    one = world.post(BUILD, request(version="23.05.1", version_code="2"))
    other = world.post(BUILD, request(version="23.05.12", version_code=""))
    assert one.status == other.status == 202
    assert one.json["request_hash"] != other.json["request_hash"]
    world.build_next()
    assert world.post(BUILD, request(version="23.05.1", version_code="2")).status == 200
    assert world.post(BUILD, request(version="23.05.12", version_code="")).status == 202


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"distro": "lede"}, "Unsupported distro: lede"),
        ({"version": "19.07.1"}, "Unsupported branch: 19.07.1"),
        ({"version": "23.05.99"}, "Unsupported version: 23.05.99"),
        ({"target": "no/where"}, "Unsupported target: no/where. The requested target was either dropped"),
        ({"profile": "nothing"}, "Unsupported profile: nothing. The requested profile was either dropped"),
        ({"repositories": {"a": "https://feeds.test.evil/good"}}, "Repository not allowed: https://feeds.test.evil"),
    ],
)
def test_what_is_not_supported_is_said_in_the_words_clients_know(
    world: World, changes: dict[str, object], detail: str
) -> None:
    refused = world.post(BUILD, request(**changes))
    assert (refused.status, refused.json["status"]) == (400, 400)
    assert refused.json["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("changes", "kind", "field", "message"),
    [
        ({"packages": "vim"}, "list_type", "packages", "Input should be a valid list"),
        ({"packages": {"vim": "1"}}, "list_type", "packages", "Input should be a valid list"),
        ({"rootfs_size_mb": 0}, "greater_than_equal", "rootfs_size_mb",
         "Input should be greater than or equal to 1"),
        ({"rootfs_size_mb": 2000}, "less_than_equal", "rootfs_size_mb",
         "Input should be less than or equal to 1024"),
        ({"defaults": "x" * 20481}, "string_too_long", "defaults",
         "String should have at most 20480 characters"),
        ({"version": "23.05.5\n"}, "string_pattern_mismatch", "version", None),
        ({"profile": "$(id)"}, "string_pattern_mismatch", "profile", None),
        ({"filesystem": "ntfs"}, "literal_error", "filesystem", None),
        ({"repositories": {"a\nb": "https://feeds.test/good"}}, "string_pattern_mismatch", "repositories", None),
        ({"repositories": {"a": "https://feeds.test/good\nsrc/gz evil https://evil"}}, "string_pattern_mismatch",
         "repositories", None),
        ({"version": None}, "string_type", "version", None),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named_as_clients_expect(
    world: World, changes: dict[str, object], kind: str, field: str, message: str | None
) -> None:
    refused = world.post(BUILD, request(**changes))
    assert refused.status == 422
    assert refused.headers["x-unknown-package"] == "none"
    error = refused.json["detail"][0]
    assert (error["type"], error["loc"][:2]) == (kind, ["body", field])
    assert message is None or error["msg"] == message


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"version": "\\ud800"}', b"1e999", b'"x"']
)
def test_what_is_no_request_is_refused(world: World, body: bytes) -> None:
    refused = world.ask(BUILD, method="POST", body=body)
    assert refused.status == 422
    assert refused.json["detail"][0]["loc"][0] == "body"
    assert "x-unknown-package" in refused.headers


def test_a_missing_field_and_an_empty_body_are_told_apart(world: World) -> None:
    assert world.ask(BUILD, method="POST", body=b"").json["detail"][0]["loc"] == ["body"]
    document = request()
    del document["target"]
    missing = world.post(BUILD, document).json["detail"][0]
    assert (missing["type"], missing["loc"], missing["msg"]) == ("missing", ["body", "target"], "Field required")


def test_a_body_too_large_is_refused_before_it_is_read(world: World) -> None:
    assert world.ask(BUILD, method="POST", body=b" " * 300_000).status == 413


def test_packages_that_do_not_exist_are_named_at_once_with_what_to_ask_for_instead(world: World) -> None:
    refused = world.post(BUILD, request(packages=["vim", "vimm", "firewall", "zzzzzz"]))
    assert refused.status == 422
    assert refused.headers["x-unknown-package"] == "firewall, vimm, zzzzzz"
    assert refused.json["detail"] == "Error: Impossible package selection: missing (firewall, vimm, zzzzzz)"
    assert {one["package"]: one["replacement"] for one in refused.json["packages"]} == {
        "firewall": "firewall4", "vimm": "vim", "zzzzzz": None,
    }  # fmt: skip
    assert all("does not exist for ath79/generic in 23.05.5" in one["reason"] for one in refused.json["packages"])
    assert world.queue.waiting() == 0


@pytest.mark.parametrize("package", ["libubox", "kmod-usb-core", "-dnsmasq", "base-files", "libc", "+vim"])
def test_packages_are_found_in_feeds_modules_and_defaults_and_without_abi_numbers(world: World, package: str) -> None:
    field = {"packages_versions": {"vim": "9.1-1"}} if package == "+vim" else {"packages": [package]}
    assert world.post(BUILD, request(**field)).status == 202


def test_package_names_that_a_shell_would_run_are_refused(world: World) -> None:
    for package in ("vim; id", "$(id)", "`id`", "vim\nX=1", "../../x", "vim $(shell id)", "-", "--root=/"):
        refused = world.post(BUILD, request(packages=[package]))
        assert refused.status in {400, 422}, package
    assert world.queue.waiting() == 0


def test_aliases_lead_to_the_profile_and_a_generic_target_takes_any_name(world: World) -> None:
    for profile in ("tplink,archer-c7-v2", "archer-c7", BOARD):
        assert world.post(BUILD, request(profile=profile)).json["request"]["profile"] == BOARD
    anything = world.post(BUILD, request(target=X86, profile="some,board", packages=["vim"]))
    assert anything.json["request"]["profile"] == "generic"


def test_failures_are_served_in_the_words_clients_match(world: World) -> None:
    name = world.post(BUILD, request()).json["request_hash"]
    world.build_next(failure=failed(FailureKind.TOO_BIG, "Selected packages exceed device storage"))
    told = world.ask(f"{BUILD}/{name}")
    assert (told.status, told.json["detail"]) == (500, "Error: Selected packages exceed device storage")
    assert told.json["imagebuilder_status"] == "failed"
    assert told.json["stderr"].startswith("some output")
    assert world.post(BUILD, request()).status == 500
    world.now[0] += 3601
    assert world.ask(f"{BUILD}/{name}").status == 404
    assert world.post(BUILD, request()).status == 202


def test_what_is_over_and_out_of_date_is_not_served_any_more(world: World) -> None:
    name = world.post(BUILD, request(defaults="echo secret")).json["request_hash"]
    world.build_next()
    assert world.ask(f"{BUILD}/{name}").status == 200
    world.now[0] += 1801
    assert world.ask(f"{BUILD}/{name}").status == 404


def test_a_full_queue_says_so_and_when_to_come_back(tmp_path: Path) -> None:
    with asu_world(tmp_path, limits=QueueLimits(waiting=1)) as world:
        assert world.post(BUILD, request()).status == 202
        full = world.post(BUILD, request(packages=["vim"]), client="192.0.2.2")
        assert (full.status, full.json["title"]) == (529, "Server overloaded")
        assert full.json["detail"] == "server overload, queue contains too many build requests: 1"
        assert full.headers["retry-after"] == "300"
        assert world.post(BUILD, request()).status == 202


def test_defaults_need_the_operators_leave(tmp_path: Path) -> None:
    with asu_world(tmp_path) as world:
        refused = world.post(BUILD, request(defaults="echo"))
        assert (refused.status, refused.json["detail"]) == (400, "Handling `defaults` not enabled on server")
        assert world.post(BUILD, request(defaults="")).status == 202


def test_unknown_names_are_answered_with_404_and_posts_to_them_with_405(world: World) -> None:
    for name in ("0" * 64, "0" * 12, "x", "%2e%2e", "0" * 63 + "\n"):
        told = world.ask(f"{BUILD}/{name}")
        assert (told.status, told.json["title"]) == (404, "Not Found")
        assert told.json["detail"] == "could not find provided request hash"
    assert world.ask(f"{BUILD}/{'0' * 64}", method="POST", body=b"{}").status == 405


def test_browsers_of_other_sites_may_ask_everything(world: World) -> None:
    name = world.post(BUILD, request()).json["request_hash"]
    world.build_next()
    paths = (BUILD, f"{BUILD}/{name}", "/json/v1/overview.json", f"/store/{name}/openwrt-squashfs-sysupgrade.bin")
    for path in paths:
        preflight = world.ask(path, method="OPTIONS", origin="https://elsewhere.test")
        assert preflight.status == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert world.ask(path).headers["access-control-allow-origin"] == "*"


def test_the_live_log_can_be_followed(world: World) -> None:
    name = world.post(BUILD, request()).json["request_hash"]
    lease = world.queue.lease(worker="w", builders=("openwrt",))
    assert lease is not None
    world.queue.append_log(lease, "one\n")
    first = world.ask(f"{BUILD}/{name}/log")
    assert (first.body, first.headers["x-next-offset"]) == (b"one\n", "4")
    world.queue.append_log(lease, "two\n")
    assert world.ask(f"{BUILD}/{name}/log?offset=4").body == b"two\n"
    assert world.ask(f"{BUILD}/{name}/log?offset=-1").status == 404


@pytest.mark.parametrize("path", ["/store/../x", "/store/a/..%2f..%2fetc", "/store/a/b", "/store/%00/a", "/store/./."])
def test_nothing_outside_the_store_is_served(world: World, path: str) -> None:
    assert world.ask(path).status == 404


def test_moved_documents_and_double_slashes_lead_on(world: World) -> None:
    assert world.ask("/api/v1/overview").headers["location"] == "/json/v1/overview.json"
    assert world.ask("/overview").status == 301
    assert world.ask("//json/v1/overview.json?x=1").headers["location"] == "/json/v1/overview.json?x=1"
    assert world.ask("///evil.test/x").headers["location"] == "/evil.test/x"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://feeds.test/good/x", True),
        ("https://feeds.test/good", True),
        ("https://feeds.test/goodness", False),
        ("https://feeds.test.evil/good/x", False),
        ("https://feeds.test@evil/good/x", False),
        ("https://evil/https://feeds.test/good", False),
        ("http://feeds.test/good", False),
        ("https://feeds.test:8443/good", False),
        ("https://feeds.test/good/../../x", False),
        ("https://feeds.test/good/%2e%2e/x", False),
        ("https://feeds.test\\@evil/good", False),
        ("https://[bad/good", False),
        ("https://feeds.test:99999999/good", False),
    ],
)
def test_allowed_addresses_are_compared_part_by_part(url: str, allowed: bool) -> None:
    assert is_allowed(url, ["https://feeds.test/good"]) is allowed
    assert not is_allowed(url, [])


@pytest.mark.parametrize(
    ("named", "agent", "label"),
    [
        ("owut/2024.1", "", "owut/2024.1"),
        (None, "auc (0.3.2)", "auc/0.3.2"),
        (None, "/usr/sbin/auc (0.3.2)", "auc/0.3.2"),
        (None, "", "unknown/0"),
        (None, "Mozilla/5.0", "unknown/0"),
        ("<script>/1", "", "unknown/0"),
    ],
)
def test_clients_are_counted_by_what_they_call_themselves(named: str | None, agent: str, label: str) -> None:
    assert client_label(named, agent) == label


def test_statistics_have_the_shapes_that_pages_draw(world: World) -> None:
    world.post(BUILD, request(client="owut/1"))
    world.post(BUILD, request(client="owut/1"))
    world.build_next()
    world.post(BUILD, request(packages=["htop"]))
    world.build_next(failure=failed(FailureKind.BUILD_FAILED, f"of {'a' * 64}\nbroke"))
    world.now[0] += 61

    assert world.ask("/api/v1/stats").json == {"queue_length": 0}
    assert world.ask("/api/v1/stats/summary").json == {"queue_length": 0, "builds_24h": 2}
    days = world.ask("/api/v1/builds-per-day").json
    assert len(days["labels"]) == 30
    assert {one["label"]: one["data"][-1] for one in days["datasets"]} == {
        "Requests": 3, "Cache-Hits": 1, "Failures": 1,
    }  # fmt: skip
    assert world.ask("/api/v1/builds-by-version").json["datasets"][0]["label"] == "23.05"
    assert world.ask("/api/v1/builds-by-version?branch=23.05").json["datasets"][0]["label"] == STABLE
    top = world.ask("/api/v1/top-packages?n=1").json
    assert (top["packages"], top["days"]) == ([{"name": "tmux", "count": 2}], 30)
    errors = world.ask("/api/v1/build-errors").body.decode()
    assert errors.startswith("Build Errors: 1 entries\nTime range: ")
    assert errors.rstrip().endswith(f"{STABLE}:{TARGET}:{BOARD} of [job-id] broke")
    assert world.ask("/api/v1/top-packages?n=x").status == 422
    names = {name for name, _labels, _value in world.server.statistics.counted()}
    assert names == {"builds_total", "clients_total", "cache_hits", "cache_misses"}
