"""No request, however made, is answered with a fault of the server, and nothing unsafe ever reaches the queue."""

import re
from pathlib import Path

from tests.fuzz.asu_requests import fuzzed_world, send_all

_SAFE = re.compile(r"[A-Za-z0-9_.,+~:/-]*", re.ASCII)


def test_asu_requests_of_every_kind_are_answered_and_only_safe_ones_are_built(tmp_path: Path) -> None:
    with fuzzed_world(tmp_path) as world:
        statuses, faults = world.loop.run(send_all(world, seed=20261121, amount=3000))
        builds = world.queue.recent(limit=10_000)
    assert faults == []
    assert statuses[422] > 50
    assert statuses[400] > 50
    assert statuses[404] > 50
    assert builds, "some of the requests must be good, or the test shows nothing"
    for build in builds:
        recipe = build.recipe
        for text in (recipe.version, recipe.target, recipe.profile, recipe.revision, *recipe.packages):
            assert _SAFE.fullmatch(text), text
        for name, url in recipe.repositories:
            assert "\n" not in name + url
            assert url.startswith("https://feeds.test/good")
