"""What each client of the attended-sysupgrade interface asks and needs, request by request, over a real socket.

None of the clients runs here. The functions below are stand-ins: they repeat the sequence of requests each client is
known to make, in its own manner (chunked bodies, odd types, fixed buffers), and fail where the client would.
"""

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.asgi import Answer, Site, running
from tests.asu_world import ARCH, BOARD, REVISION, STABLE, TARGET, World, asu_world, failed
from tests.waiting import PATIENCE_S

from overhaul.builds.results import FailureKind, Phase

#: Longer addresses overflow a buffer of auc.
AUC_BUFFER = 256
#: LuCI looks every phase up in a table and dies of one that is not in it.
LUCI_PHASES = {
    "init", "container_setup", "validate_revision", "validate_manifest", "calculate_packages_hash", "building_image",
    "signing_images", "done", "failed",
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asu_world(tmp_path, allow_defaults=True) as made:
        yield made


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with running(world.app) as running_site:
        yield running_site


def chunked(site: Site, path: str, document: object, *, kind: str, agent: str) -> Answer:
    """Post as auc does: in chunks, of whatever type it says."""
    body = json.dumps(document).encode()
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE_S)
    try:
        pieces = iter([body[:10], body[10:]])
        headers = {"Content-Type": kind, "User-Agent": agent, "Transfer-Encoding": "chunked"}
        connection.request("POST", path, body=pieces, headers=headers, encode_chunked=True)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def read(answer: Answer) -> Any:
    return json.loads(answer.body)


def owut(site: Site, work: Callable[[], None], *, target: str = TARGET, board: str = BOARD) -> dict[str, Any]:
    """Stand in for owut: overview, indexes, POST, HEAD polling, image, checks."""
    overview = read(site.ask("/json/v1/overview.json"))
    branch = overview["branches"]["23.05"]
    assert branch["enabled"]
    assert branch["targets"]
    assert isinstance(overview["server"]["max_custom_rootfs_size_mb"], int)
    version = branch["versions"][0]
    path = branch["path"].replace("{version}", version)
    packages = read(site.ask(f"/json/v1/{path}/packages/{branch['targets'][target]}-index.json"))
    assert read(site.ask(f"/json/v1/{path}/targets/{target}/index.json"))["packages"]
    body = {
        "client": "owut/2026.04", "target": target, "profile": board, "version": version, "version_code": REVISION,
        "filesystem": "squashfs", "diff_packages": True, "packages_versions": {"vim": packages["vim"]},
        "rootfs_size_mb": 256, "defaults": "# owut\n",
    }  # fmt: skip
    agent = "owut/2026.04"
    first = site.ask("/api/v1/build", method="POST", body=json.dumps(body).encode(), user_agent=agent)
    name = read(first)["request_hash"]
    while True:
        head = site.ask(f"/api/v1/build/{name}", method="HEAD", user_agent=agent)
        if head.status != 202:
            break
        assert head.header("x-imagebuilder-status")
        assert head.header("x-queue-position").isdecimal()
        work()
    done = read(site.ask(f"/api/v1/build/{name}", user_agent=agent))
    if head.status != 200:
        assert {"detail", "stdout", "stderr"} <= done.keys()
        return dict(done)
    image = next(one for one in done["images"] if (one["filesystem"], one["type"]) == ("squashfs", "sysupgrade"))
    file = site.ask(f"/store/{done['bin_dir']}/{image['name']}", user_agent=agent)
    assert file.status == 200
    assert hashlib.sha256(file.body).hexdigest() == image["sha256"]
    assert done["version_code"] == done["request"]["version_code"]
    assert done["manifest"]["vim"]
    return dict(done)


def luci(site: Site, work: Callable[[], None]) -> dict[str, Any]:
    """Stand in for LuCI's attended sysupgrade in a browser of another origin."""
    origin = "http://192.168.1.1"
    latest = read(site.ask("/json/v1/overview.json", origin=origin))["latest"]
    version = next(one for one in latest if one.startswith("23.05"))
    preflight = site.ask("/api/v1/build", method="OPTIONS", origin=origin, access_control_request_method="POST")
    assert preflight.header("access-control-allow-origin") == "*"
    body = {
        "client": "luci/24.1", "packages": ["busybox", "vim"], "profile": "tplink,archer-c7-v2", "target": TARGET,
        "version": version, "diff_packages": True, "filesystem": "squashfs", "rootfs_size_mb": None,
    }  # fmt: skip
    answer = site.ask("/api/v1/build", method="POST", body=json.dumps(body).encode(), origin=origin)
    while answer.status == 202:
        told = read(answer)
        # The mere presence of a position means that it waits; a phase outside the table is a script error.
        assert ("queue_position" in told) is (told["detail"] == "queued")
        assert "queue_position" in told or told["imagebuilder_status"] in LUCI_PHASES
        work()
        answer = site.ask(f"/api/v1/build/{told['request_hash']}", origin=origin)
    done = read(answer)
    if answer.status != 200:
        assert answer.status in {400, 422, 500}
        return dict(done)
    assert {"bin_dir", "version_number", "version_code", "id", "target", "build_at"} <= done.keys()
    image = next(one for one in done["images"] if one["type"] == "sysupgrade")
    assert {"name", "sha256", "sha256_unsigned"} <= image.keys()
    preflight = site.ask(f"/store/{done['bin_dir']}/{image['name']}", method="OPTIONS", origin=origin)
    assert "content-type" in preflight.header("access-control-allow-headers").lower()
    file = site.ask(f"/store/{done['bin_dir']}/{image['name']}", origin=origin, content_type="application/x")
    assert file.header("access-control-allow-origin") == "*"
    assert hashlib.sha256(file.body).hexdigest() == image["sha256"]
    return dict(done)


def auc(site: Site, work: Callable[[], None], packages: dict[str, str]) -> Answer:
    """Stand in for auc 0.3.2: buffers of 256 bytes, chunked bodies, a header it takes unseen."""
    branches = read(site.ask("/json/v1/branches.json", user_agent="/usr/sbin/auc (0.3.2)"))
    usable = [
        one for one in branches if {"enabled", "name", "path", "path_packages", "versions", "targets"} <= one.keys()
    ]
    branch = next(one for one in usable if one["name"] == "23.05")
    for version in branch["versions"]:
        path = branch["path"].replace("{version}", version)
        profile = read(site.ask(f"/json/v1/{path}/targets/{TARGET}/{BOARD}.json"))
        assert profile["metadata_version"] == 1
        assert (profile["target"], profile["arch_packages"]) == (TARGET, branch["targets"][TARGET])
        assert read(site.ask(f"/json/v1/{path}/targets/{TARGET}/index.json"))["architecture"] == ARCH
    body = {
        "version": branch["versions"][0], "version_code": REVISION, "target": TARGET, "profile": BOARD,
        "diff_packages": True, "packages_versions": packages,
    }  # fmt: skip
    answer = chunked(site, "/api/v1/build", body, kind="text/json", agent="auc (0.3.2)")
    while answer.status in {201, 202}:
        told = read(answer)
        assert isinstance(told.get("queue_position", 0), int)
        work()
        url = f"/api/v1/build/{told['request_hash']}"
        assert len(site.url + url) < AUC_BUFFER
        answer = site.ask(url)
    if answer.status == 422:
        assert answer.header("x-unknown-package")
    if answer.status == 200:
        done = read(answer)
        url = f"/store/{done['bin_dir']}/{done['images'][0]['name']}"
        assert len(site.url + url) < AUC_BUFFER
        file = site.ask(url)
        assert file.header("content-length") == str(len(file.body))
        assert not file.header("transfer-encoding")
    return answer


def old_auc(site: Site, work: Callable[[], None]) -> dict[str, Any]:
    """Stand in for auc 0.1.4 of 2019."""
    check = {"distro": "OpenWrt", "version": "23.05.4", "target": TARGET, "revision": "r1", "installed": {"vim": "9.0"},
             "upgrade_packages": 1}  # fmt: skip
    checked = chunked(site, "/api/upgrade-check", check, kind="text/json", agent="auc")
    version = read(checked)["version"]
    request = {"distro": "OpenWrt", "version": version, "target": TARGET, "board": BOARD, "packages": ["vim"]}
    answer = chunked(site, "/api/upgrade-request", request, kind="text/json", agent="auc")
    while answer.status == 202:
        assert answer.header("x-imagebuilder-status") in {"queue", "initialize", "building"}
        name = read(answer)["request_hash"]
        work()
        answer = site.ask(f"/api/upgrade-request/{name}")
    done = read(answer)
    file = site.ask(f"{done['files']}/{done['sysupgrade']}")
    assert file.header("content-length") == str(len(file.body))
    return dict(done)


def chef(site: Site, work: Callable[[], None]) -> dict[str, Any]:
    """Stand in for chef of 2019."""
    distributions = read(site.ask("/api/distributions"))
    assert distributions["openwrt"]["versions"][STABLE]["version_description"]
    (model,) = read(site.ask(f"/api/models?distro=openwrt&version={STABLE}&model_search=archer"))
    defaults = read(site.ask(
        f"/api/packages_image?distro=openwrt&version={STABLE}&target={model['target']}&profile={model['profile']}"
    ))  # fmt: skip
    assert read(site.ask("/api/v1/stats/image_stats")).keys() == {"total", "stored", "requested"}
    request = {"distro": "openwrt", "version": STABLE, "target": model["target"], "profile": model["profile"],
               "board": model["profile"], "packages": [*defaults, "vim"], "defaults": "echo hi\n"}  # fmt: skip
    answer = site.ask("/api/build-request", method="POST", body=json.dumps(request).encode(), origin="http://chef")
    while answer.status == 202:
        assert "X-Build-Queue-Position" in answer.header("access-control-expose-headers")
        name = read(answer)["request_hash"]
        work()
        answer = site.ask(f"/api/build-request/{name}")
    done = read(answer)
    names = [one["name"] for one in read(site.ask(done["files"]))]
    (factory,) = [one for one in names if "factory" in one]
    assert site.ask(f"{done['files']}{factory}").status == 200
    image = read(site.ask(f"/api/image/{done['image_hash']}"))
    assert {"snapshots", "defaults_hash", "build_date", "manifest_hash"} <= image.keys()
    assert read(site.ask(f"/api/manifest/{image['manifest_hash']}"))["vim"]
    return dict(done)


def firmware_selector(site: Site, work: Callable[[], None], *packages: str) -> Answer:
    """Stand in for the firmware selector, which shows `detail` as it is."""
    body = {"profile": BOARD, "target": TARGET, "packages": [*packages], "defaults": "", "version_code": REVISION,
            "version": STABLE, "diff_packages": True, "client": "ofs/5.1", "repositories": {},
            "repository_keys": []}  # fmt: skip
    answer = site.ask("/api/v1/build", method="POST", body=json.dumps(body).encode(), origin="https://ofs.test")
    while answer.status == 202:
        assert read(answer)["imagebuilder_status"]
        work()
        answer = site.ask(f"/api/v1/build/{read(answer)['request_hash']}", origin="https://ofs.test")
    if answer.status == 200:
        assert {"bin_dir", "version_number", "images"} <= read(answer).keys()
    else:
        assert read(answer)["detail"]
    return answer


class Work:
    """What happens between two polls: first a phase, then the end."""

    def __init__(self, world: World, **end: Any) -> None:
        self._world = world
        self._end = end
        self._phases = [Phase.CONTAINER_SETUP, Phase.VALIDATE_MANIFEST, Phase.BUILDING_IMAGE]
        self._lease: Any = None

    def __call__(self) -> None:
        queue = self._world.queue
        if self._lease is None:
            self._lease = queue.lease(worker="stand-in", builders=("openwrt",))
        elif self._phases:
            self._lease = queue.renew(self._lease, phase=self._phases.pop(0))
        else:
            queue.give_back(self._lease)
            self._world.build_next(**self._end)


def test_owut_upgrades_and_is_told_of_failures(site: Site, world: World) -> None:
    assert owut(site, Work(world))["detail"] == "done"
    world.now[0] += 10 * 86400
    failure = failed(FailureKind.IMPOSSIBLE_PACKAGES, "Impossible package selection: missing (vim)")
    assert owut(site, Work(world, failure=failure))["detail"] == "Error: Impossible package selection: missing (vim)"


def test_luci_upgrades_and_never_meets_a_phase_it_does_not_know(site: Site, world: World) -> None:
    assert luci(site, Work(world))["detail"] == "done"
    world.now[0] += 10 * 86400
    failure = failed(FailureKind.TOO_BIG, "Selected packages exceed device storage")
    assert luci(site, Work(world, failure=failure))["detail"] == "Error: Selected packages exceed device storage"


def test_auc_upgrades_within_its_buffers_and_finds_the_header_it_takes_unseen(site: Site, world: World) -> None:
    assert auc(site, Work(world), {"vim": "9.1-1"}).status == 200
    assert auc(site, Work(world), {"no-such": "1"}).status == 422
    assert auc(site, Work(world), {"bad name": "1"}).status == 422


def test_auc_of_2019_upgrades(site: Site, world: World) -> None:
    assert old_auc(site, Work(world))["sysupgrade"] == "openwrt-squashfs-sysupgrade.bin"


def test_chef_builds(site: Site, world: World) -> None:
    done = chef(site, Work(world, images=("openwrt-squashfs-factory.bin", "openwrt-squashfs-sysupgrade.bin")))
    assert done["files"].startswith("/json/custom/")


def test_the_firmware_selector_builds_and_shows_why_not(site: Site, world: World) -> None:
    assert firmware_selector(site, Work(world), "vim").status == 200
    refused = firmware_selector(site, Work(world), "vim", "no-such")
    assert (refused.status, read(refused)["detail"]) == (
        422, "Error: Impossible package selection: missing (no-such)",
    )  # fmt: skip


def test_every_phase_that_can_be_told_is_one_that_luci_knows() -> None:
    assert {phase.value for phase in Phase} <= LUCI_PHASES
