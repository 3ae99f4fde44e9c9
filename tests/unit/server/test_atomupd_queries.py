"""atomupd queries in the server: products by their signed policies, and image pools of others."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from tests.atomupd_pools import put_image, write_configuration
from tests.published import PublishedRepository
from tests.waiting import until

from overhaul.dialects.atomupd.own_pool import bundle_path
from overhaul.release.record import ReleaseId
from overhaul.server.app import create_app
from overhaul.server.atomupd import SharedPrefixError, SignedPolicies
from overhaul.server.catalogue import UnreadableMetadataError
from overhaul.server.settings import ServerSettings
from overhaul.server.tree import LocalTree

OWN = "/atomupd/alpha/updates"


class Repository:
    """A repository whose product `alpha` has a table for atomupd, added after its releases were published.

    Bundles are empty files, because queries only ask whether they are there.
    """

    def __init__(self, directory: Path) -> None:
        self.published = PublishedRepository(directory / "repository")

    def publish(self, version: str, **options: Any) -> None:
        build_id = f"2026011{version[-1]}.1"
        self.published.publish(version, build_id, **options)
        arch = options.get("arch", "amd64")
        release = ReleaseId(product="alpha", variant="desk", arch=arch, version=version, build_id=build_id)
        bundle = bundle_path(self.published.public / "atomupd/alpha/images", release)
        bundle.parent.mkdir(parents=True)
        bundle.touch()

    def settings(self, *, pools: tuple[Path, ...] = (), own: bool = True) -> ServerSettings:
        path = self.published.directory / "overhaul.toml"
        kept = path.read_text()
        listed = json.dumps([str(pool) for pool in pools])
        text = kept.replace("atomupd_pools = []", f"atomupd_pools = {listed}")
        if own:
            text += '\n[products.alpha.atomupd]\nrelease = "holo"\ncompatible = "x"\nkey = "k"\ncertificate = "c"\n'
        path.write_text(text)
        settings = ServerSettings.of_repository(self.published.directory)
        path.write_text(kept)
        return settings


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    put_image(tmp_path / "pool", "3.1", "20240101.1")
    return write_configuration(tmp_path / "pool.conf", tmp_path / "pool")


def query(version: str, build_id: str, **changes: str) -> str:
    words = {
        "product": "alpha", "release": "holo", "variant": "desk", "arch": "amd64", "version": version,
        "buildid": build_id, "branch": "stable", **changes,
    }  # fmt: skip
    return urlencode(words)


def steamos(version: str, build_id: str) -> str:
    return query(version, build_id, product="steamos", variant="steamdeck")


def open_client(application: ASGIApp) -> TestClient:
    """Return a client on this machine, from where plain http is no danger."""
    return TestClient(application, client=("127.0.0.1", 50_000))


def offered(client: TestClient, path: str) -> set[str]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    document = answer.json() if answer.content else {}  # nothing is offered
    return {candidate["image"]["version"] for candidate in document.get("minor", {}).get("candidates", ())}


def test_a_product_is_asked_at_its_own_path_and_a_publish_shows_without_a_restart(repository: Repository) -> None:
    repository.publish("1.0")
    with open_client(create_app(repository.settings(), clock=repository.published.clock)) as client:
        path = f"{OWN}?{query('1.0', '20260110.1')}"
        assert offered(client, path) == set()
        repository.publish("1.1")
        until(lambda: offered(client, path) == {"1.1.0"})
        assert client.get("/metadata/timestamp.json").status_code == 200
        assert client.get("/atomupd/alpha/nothing").status_code == 404


@pytest.mark.parametrize("arch", ["amd64", "x86_64"])
def test_who_is_in_a_rollout_is_decided_for_each_device(repository: Repository, arch: str) -> None:
    repository.publish("1.0", arch=arch)
    repository.publish("1.1", arch=arch, rollout_percent=50)
    with open_client(create_app(repository.settings(), clock=repository.published.clock)) as client:
        path = f"{OWN}?{query('1.0', '20260110.1')}"
        assert offered(client, path) == set(), "who tells no place waits"
        among = [bool(offered(client, f"{path}&rollout={place}")) for place in range(100)]
        assert 20 < sum(among) < 80


def test_an_existing_pool_is_served_by_its_own_file_beside_the_status_page(repository: Repository, pool: Path) -> None:
    repository.publish("1.0")
    with open_client(create_app(repository.settings(pools=(pool,)), clock=repository.published.clock)) as client:
        asked = steamos("3.0", "20230101.1")
        assert offered(client, f"/updates?{asked}") == {"3.1.0"}
        assert offered(client, f"/?{asked}") == {"3.1.0"}
        assert "<!doctype html>" in client.get("/").text
        put_image(pool.parent / "pool", "3.2", "20240201.1")
        until(lambda: offered(client, f"/updates?{asked}") == {"3.2.0"})

        metrics = client.get("/metrics").text
        assert 'overhaul_http_requests_total{method="GET",route="atomupd-query",status="200"}' in metrics


def test_a_pool_that_is_absent_keeps_nothing_else_from_being_served(
    repository: Repository, pool: Path, tmp_path: Path
) -> None:
    repository.publish("1.0")
    settings = repository.settings(pools=(pool,))
    application = create_app(settings, clock=repository.published.clock)
    (tmp_path / "pool").rename(tmp_path / "away")
    with open_client(application) as client:
        asked = f"/updates?{steamos('3.0', '20230101.1')}"
        assert client.get("/metadata/timestamp.json").status_code == 200
        assert client.get(asked).status_code == 503
        (tmp_path / "away").rename(tmp_path / "pool")
        until(lambda: client.get(asked).status_code == 200)


def test_damaged_metadata_is_no_news_until_it_is_mended(repository: Repository) -> None:
    repository.publish("1.0")
    (product,) = repository.settings().atomupd_products
    policies = SignedPolicies(LocalTree(repository.published.directory / "store"))
    before = policies.of(product)
    pointer = repository.published.public / "metadata/timestamp.json"
    kept = pointer.read_bytes()
    pointer.write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(UnreadableMetadataError):
            policies.of(product)
    pointer.write_bytes(kept)
    assert policies.of(product) == before


def test_two_pools_at_one_path_are_refused(repository: Repository, pool: Path, tmp_path: Path) -> None:
    other = write_configuration(tmp_path / "other.conf", tmp_path / "pool")
    with pytest.raises(SharedPrefixError, match=r"other\.conf"):
        create_app(repository.settings(pools=(pool, other), own=False))
    apart = write_configuration(tmp_path / "other.conf", tmp_path / "pool", "[Overhaul]", "Prefixes = /other")
    create_app(repository.settings(pools=(pool, apart), own=False))


def test_policies_are_read_again_only_when_the_pointer_moves(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("1.0")
    repository.publish("1.1", channel="beta")
    (product,) = repository.settings().atomupd_products
    tree = LocalTree(repository.published.directory / "store")
    read: list[str] = []
    whole = tree.read_all

    def noted(path: str) -> bytes | None:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(tree, "read_all", noted)
    policies = SignedPolicies(tree)

    assert [policy.channel for policy in policies.of(product)] == ["stable", "beta"]
    assert read
    read.clear()
    assert [policy.channel for policy in policies.of(product)] == ["stable", "beta"]
    assert read == []
    repository.published.refresh()
    assert len(policies.of(product)) == 2
    assert read
