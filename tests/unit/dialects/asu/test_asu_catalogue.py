"""The catalogue: what is fetched when, what is believed, and what clients see of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.asu_world import ARCH, BOARD, REVISION, STABLE, TARGET, UPSTREAM, X86, World, asu_world, profiles_json

from overhaul.dialects.asu import upstream_documents as documents
from overhaul.dialects.asu.catalogue_store import CatalogueStore
from overhaul.dialects.asu.upstream_documents import UpstreamDocumentError
from overhaul.host.locks import LockedError, locked
from overhaul.trust.usign import generate_usign_key


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asu_world(tmp_path) as made:
        yield made


def test_the_overview_is_what_clients_choose_from(world: World) -> None:
    overview = world.ask("/json/v1/overview.json").json
    assert overview["latest"] == [STABLE, "22.03.7"]
    assert list(overview["branches"]) == ["SNAPSHOT", "23.05", "22.03"]
    branch = overview["branches"]["23.05"]
    assert branch["versions"] == [STABLE, "23.05.4"]
    assert branch["targets"] == {TARGET: ARCH, X86: "x86_64"}
    assert (branch["path"], branch["path_packages"], branch["branch_off_rev"], branch["enabled"]) == (
        "releases/{version}", "DEPRECATED", 23069, True,
    )  # fmt: skip
    assert {"source": "firewall", "target": "firewall4", "revision": 18611} in branch["package_changes"]
    assert all(change["revision"] <= 23069 for change in branch["package_changes"])
    assert len(overview["branches"]["SNAPSHOT"]["package_changes"]) == 9
    assert overview["upstream_url"] == UPSTREAM
    assert overview["server"]["max_defaults_length"] == 20480
    assert world.ask("/json/v1/latest.json").json == {"latest": overview["latest"]}
    assert world.ask("/json/v1/branches.json").json == list(overview["branches"].values())


def test_a_branch_without_versions_or_targets_is_never_published(world: World) -> None:
    # 21.02.0 stands in upstream's list and has no files; 24.10 and 25.12 have no versions at all.
    assert "21.02" not in world.ask("/json/v1/overview.json").json["branches"]
    assert all(one["targets"] and one["versions"] for one in world.ask("/json/v1/branches.json").json)


def test_devices_are_found_by_profile_alias_and_board_name(world: World) -> None:
    base = f"/json/v1/releases/{STABLE}/targets/{TARGET}"
    for name in (BOARD, "tplink,archer-c7-v2", "archer-c7"):
        found = world.ask(f"{base}/{name}.json").json
        assert (found["id"], found["metadata_version"], found["version_code"]) == (BOARD, 1, REVISION)
        assert found["images"][0]["type"] == "sysupgrade"
        assert "profiles" not in found
    assert world.ask(f"{base}/nothing.json").json == {}
    assert world.ask(f"/json/v1/snapshots/targets/{TARGET}/{BOARD}.json").status == 200


def test_packages_of_feeds_targets_and_modules_are_listed(world: World) -> None:
    target = world.ask(f"/json/v1/releases/{STABLE}/targets/{TARGET}/index.json").json
    assert target["architecture"] == ARCH
    assert {"base-files", "kmod-usb-core"} <= set(target["packages"])
    arch = world.ask(f"/json/v1/releases/{STABLE}/packages/{ARCH}-index.json").json
    assert (arch["vim"], arch["busybox"]) == ("9.1-1", "1.36")


@pytest.mark.parametrize(
    "path",
    ["releases/1/targets/a/b/c.json", f"releases/{STABLE}/targets/no/where/x.json", "nothing.json", "", "overview",
     f"releases/{STABLE}/packages/none-index.json", f"releases/{STABLE}/packages/{ARCH}.json",
     f"releases/{STABLE}/targets/../../../etc/passwd.json", "releases/\n/targets/x/y/z.json"],
)  # fmt: skip
def test_documents_that_do_not_exist_are_404(world: World, path: str) -> None:
    assert world.ask(f"/json/v1/{path}").status == 404


def test_an_unchanged_document_is_not_sent_again(world: World) -> None:
    first = world.ask("/json/v1/overview.json")
    again = world.ask("/json/v1/overview.json", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_revisions_are_told_from_the_catalogue(world: World) -> None:
    assert world.ask(f"/api/v1/revision/{STABLE}/{TARGET}").json == {"revision": REVISION}
    unknown = world.ask(f"/api/v1/revision/19.07.1/{TARGET}")
    assert (unknown.status, unknown.json["detail"]) == (400, "Unsupported version: 19.07.1")
    missing = world.ask(f"/api/v1/revision/{STABLE}/no/where")
    assert (missing.status, missing.json["detail"]) == (404, f"Failed to fetch revision for {STABLE}/no/where")


def test_no_request_asks_upstream(world: World) -> None:
    before = len(world.upstream.asked)
    world.ask("/json/v1/overview.json")
    world.ask(f"/json/v1/releases/{STABLE}/targets/{TARGET}/index.json")
    world.ask("/json/v1/releases/99.99/targets/a/b/index.json")
    world.post("/api/v1/build", {"version": "23.05.4", "target": TARGET, "profile": BOARD, "packages": ["vim", "no"]})
    world.ask(f"/api/v1/revision/SNAPSHOT/{X86}")
    assert len(world.upstream.asked) == before


def test_what_did_not_change_is_not_fetched_again(world: World) -> None:
    sent = world.upstream.bodies_sent
    result = world.update()
    assert world.upstream.bodies_sent == sent
    assert result.changed == 0
    assert result.asked > 10


def test_a_new_release_appears_after_the_next_update(world: World) -> None:
    world.upstream.put_versions(stable="23.05.6", old="22.03.7", versions=["23.05.6", STABLE, "22.03.7"])
    world.upstream.put_system("releases/23.05.6", "23.05.6")
    assert "23.05.6" not in world.ask("/json/v1/latest.json").json["latest"]
    world.update()
    assert world.ask("/json/v1/latest.json").json["latest"] == ["23.05.6", "22.03.7"]


def test_the_settled_releases_of_a_branch_are_asked_about_once_a_day(world: World) -> None:
    world.upstream.asked.clear()
    world.update()
    assert not [path for path in world.upstream.asked if "23.05.4/targets/" in path]
    world.now[0] += 86401
    world.upstream.asked.clear()
    world.update()
    assert [path for path in world.upstream.asked if "23.05.4/targets/" in path]


@pytest.mark.parametrize("damage", ["down", "500", "empty", "not json", "no targets", "cut", "wrong target"])
def test_a_broken_upstream_leaves_the_last_good_state(world: World, damage: str) -> None:
    before = world.ask("/json/v1/overview.json").body
    profile = world.ask(f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json").body
    upstream = world.upstream
    for path in list(upstream.files):
        match damage:
            case "down":
                upstream.is_down = True
            case "500":
                upstream.broken[path] = 500
            case "empty":
                upstream.files[path] = b""
            case "not json":
                upstream.files[path] = b"<html>maintenance</html>"
            case "no targets" if path.endswith(".targets.json"):
                upstream.files[path] = b"{}"
            case "cut":
                upstream.files[path] = upstream.files[path][: len(upstream.files[path]) // 2]
            case "wrong target" if path.endswith("profiles.json"):
                upstream.files[path] = json.dumps(profiles_json(STABLE, "other/target")).encode()
    world.now[0] += 90_000
    result = world.update()

    assert result.problems
    assert world.ask("/json/v1/overview.json").body == before
    assert world.ask(f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json").body == profile


def test_upstream_that_was_never_there_makes_an_empty_catalogue_and_no_errors(tmp_path: Path) -> None:
    with asu_world(tmp_path, updated=False) as world:
        world.upstream.is_down = True
        assert world.update().problems
        assert world.ask("/json/v1/overview.json").json["branches"] == {}
        refused = world.post("/api/v1/build", {"version": STABLE, "target": TARGET, "profile": BOARD})
        assert (refused.status, refused.json["detail"]) == (400, f"Unsupported version: {STABLE}")


def test_with_keys_only_what_upstream_signed_is_taken(tmp_path: Path) -> None:
    secret, stranger = generate_usign_key(), generate_usign_key()
    path = f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json"
    with asu_world(tmp_path, updated=False) as world:
        assert world.update(keys=(secret.public,)).problems
        assert world.ask(path).status == 404
        world.upstream.sign(secret)
        world.now[0] += 90_000
        assert not [problem for problem in world.update(keys=(secret.public,)).problems if "21.02.0" not in problem]
        good = world.ask(path).body
        changed = f"/releases/{STABLE}/targets/{TARGET}/profiles.json"
        world.upstream.files[changed] = world.upstream.files[changed].replace(REVISION.encode(), b"r1-evil")
        assert any("signed" in problem for problem in world.update(keys=(secret.public,)).problems)
        assert world.ask(path).body == good
        world.upstream.sign(stranger)
        assert any("not trusted" in problem for problem in world.update(keys=(secret.public,)).problems)
        assert world.ask(path).body == good


def test_only_one_process_updates(world: World) -> None:
    store = world.server.parts.catalogue.store
    with locked(store.lock_path, purpose="somebody else"), pytest.raises(LockedError):
        world.update()


def test_a_damaged_file_is_noticed_and_fetched_again(world: World) -> None:
    store = world.server.parts.catalogue.store
    url = f"{UPSTREAM}/releases/{STABLE}/targets/{TARGET}/profiles.json"
    digest = store.read().files[url].sha256
    (store.directory / "bodies" / digest[:2] / digest).write_bytes(b"{}")
    world.server.parts.catalogue._stamp = (0, 1)
    world.server.parts.catalogue.look()
    path = f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json"
    assert world.ask(path).status == 404
    world.update()
    world.update()
    assert world.ask(path).status == 200


def test_a_damaged_list_counts_as_none_and_old_bodies_go_after_a_day(tmp_path: Path) -> None:
    now = [1_790_000_000.0]
    store = CatalogueStore(tmp_path, clock=lambda: now[0])
    digest = store.put(b"body")
    (tmp_path / "current.json").write_bytes(b"{")
    assert store.read().files == {}
    now[0] = (tmp_path / "bodies" / digest[:2] / digest).stat().st_mtime + 3600
    assert store.sweep(store.read()) == 0
    now[0] += 86400
    assert store.sweep(store.read()) == 1


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (documents.parse_versions, b"[]"),
        (documents.parse_targets, b'{"../../etc": "x"}'),
        (documents.parse_targets, b"[1]"),
        (documents.parse_index, b'{"packages": []}'),
        (documents.parse_opkg_packages, b"\xff"),
        (documents.parse_opkg_packages, b"nothing"),
        (documents.parse_feeds, b"\xff"),
        (documents.parse_sums, b"short file\n"),
        (documents.parse_versions, b"[" * 100_000),
    ],
)
def test_files_that_are_not_what_their_name_says_are_refused(parse: "object", data: bytes) -> None:
    assert callable(parse)
    with pytest.raises(UpstreamDocumentError, match="the-file"):
        parse(data, name="the-file")


def test_names_from_upstream_that_are_none_never_get_in() -> None:
    targets = documents.parse_targets(b'{"ath79/generic": "mips", "x/../y": "a", "a/b;c": "d"}', name="x")
    assert targets == {"ath79/generic": "mips"}
    index = documents.parse_index(b'{"packages": {"vim": "1", "$(id)": "2", "-x": "3", "a b": "4"}}', name="x")
    assert list(index.versions) == ["vim"]
    assert documents.parse_feeds(b"src base x\nsrc ../../etc y\n", name="x") == ("base",)


def test_an_opkg_index_tells_sizes_and_names_without_abi_versions() -> None:
    text = (
        b"Package: libubox20230523\nVersion: 1\nABIVersion: 20230523\nArchitecture: mips\nSize: 100\n"
        b"Provides: libubox-any\n\nPackage: a\nVersion: 2\nArchitecture: all\n"
    )
    index = documents.parse_opkg_packages(text, name="x")
    assert index.versions == {"libubox": "1", "a": "2"}
    assert index.sizes == {"libubox": 100}
    assert index.provided == {"libubox20230523", "libubox-any"}
    assert index.architecture == "mips"
