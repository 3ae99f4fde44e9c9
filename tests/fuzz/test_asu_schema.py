"""Requests that schemathesis makes out of a description of the interface, right ones and wrong ones: never a 5xx.

The description is the test's own, written from what the clients send. Our 100 000 hostile requests are another
matter (`asu_requests.py`); this one walks systematically along the edges of each field.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from overhaul.builds.records import QueueLimits
from tests.asgi import Site, running
from tests.asu_world import BOARD, STABLE, TARGET, asu_world
from tests.waiting import PATIENCE_S

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_MAPPING = {"type": "object", "additionalProperties": _TEXT}
_TODAY = {
    "type": "object",
    "required": ["version", "target", "profile"],
    "properties": {
        "distro": {"enum": ["openwrt", "debian"]}, "version": {"enum": [STABLE, "SNAPSHOT"]}, "version_code": _TEXT,
        "target": {"enum": [TARGET, "x86/64"]}, "profile": {"enum": [BOARD, "generic"]}, "packages": _TEXTS,
        "packages_versions": _MAPPING, "diff_packages": {"type": "boolean"}, "defaults": _TEXT, "client": _TEXT,
        "rootfs_size_mb": {"type": "integer", "minimum": 1, "maximum": 1024},
        "filesystem": {"enum": ["squashfs", "ext4", "ubifs", "jffs2"]}, "repositories": _MAPPING,
        "repository_keys": _TEXTS, "repositories_mode": {"enum": ["append", "replace"]},
    },
}  # fmt: skip
_SEED = {
    "type": "object",
    "required": ["distro", "target", "board"],
    "properties": {
        "distro": {"enum": ["openwrt", "OpenWrt"]}, "version": {"enum": [STABLE, "snapshot"]}, "target": _TEXT,
        "board": {"enum": [BOARD]}, "model": _TEXT, "packages": _TEXTS, "defaults": _TEXT,
        "installed": _MAPPING, "upgrade_packages": {"enum": [0, 1]}, "revision": _TEXT, "request_hash": _TEXT,
    },
}  # fmt: skip
_OK = {"responses": {"default": {"description": "any answer"}}}


def _posted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"post": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}, **_OK}}


def _got(*names: str, query: bool = False) -> dict[str, Any]:
    place = "query" if query else "path"
    return {"get": {"parameters": [{"name": name, "in": place, "required": not query, "schema": _TEXT}
                                   for name in names], **_OK}}  # fmt: skip


SCHEMA = schemathesis.openapi.from_dict(
    {
        "openapi": "3.0.3",
        "info": {"title": "attended sysupgrade", "version": "1"},
        "paths": {
            "/api/v1/build": _posted(_TODAY),
            "/api/v1/build/{name}": _got("name"),
            "/api/v1/revision/{version}/{target}/{subtarget}": _got("version", "target", "subtarget"),
            "/api/v1/stats/builds-by-version": _got("branch", query=True),
            "/json/v1/{path}": _got("path"),
            "/store/{name}/{file}": _got("name", "file"),
            "/api/upgrade-check": _posted(_SEED),
            "/api/upgrade-request": _posted(_SEED),
            "/api/build-request": _posted(_SEED),
            "/api/build-request/{name}": _got("name"),
            "/api/models": _got("distro", "version", "model_search", query=True),
            "/api/packages_image": _got("distro", "version", "target", "profile", query=True),
            "/api/image/{name}": _got("name"),
            "/api/manifest/{name}": _got("name"),
            "/firmware": _got("q", query=True),
        },
    }
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    limits = QueueLimits(waiting=1_000_000, waiting_of_client=1_000_000)
    directory = tmp_path_factory.mktemp("world")
    with asu_world(directory, limits=limits, allow_defaults=True) as world, running(world.app) as site:
        yield site


@SCHEMA.parametrize()
@settings(max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_no_request_of_the_interface_s_shape_fails_the_server(case: "schemathesis.Case[Any]", site: Site) -> None:
    response = case.call(base_url=site.url.rstrip("/"), timeout=PATIENCE_S)
    case.validate_response(response, checks=[not_a_server_error])


def test_the_world_is_the_one_the_description_names(tmp_path: Path) -> None:
    """Else every answer would be a refusal of the first field."""
    with asu_world(tmp_path) as world:
        document = {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim"]}
        assert world.post("/api/v1/build", document).status == 202
