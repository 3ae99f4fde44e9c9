"""What was served and how far releases are open outlives the server that saw it."""

from pathlib import Path

from tests.asgi import running
from tests.published import PublishedRepository

from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.publishing.policies import set_rollout
from overhaul.server.app import create_app
from overhaul.server.database.engine import Database
from overhaul.server.exposure import ExposureHistory
from overhaul.server.settings import ServerSettings
from overhaul.server.volume import ServedHours


def test_downloads_are_known_by_release_after_the_server_ended(tmp_path: Path) -> None:
    published = PublishedRepository(tmp_path / "repository")
    release = published.publish("1.0", "b1")
    settings = ServerSettings.of_repository(published.directory)
    pack = release.image.packs[0].pack
    with running(create_app(settings, clock=published.clock)) as site:
        tag = site.ask("/metadata/timestamp.json").header("etag")
        assert site.ask("/metadata/timestamp.json", If_None_Match=tag).status == 304
        assert len(site.ask(f"/{pack.path}").body) == pack.size
        assert site.ask(f"/{pack.path}", Range="bytes=0-99").status == 206
        assert site.ask(f"/{pack.path}x").status == 404

    database = Database(settings.database_url)
    found = {each.route: each for each in ServedHours(database).read(since=int(published.now))}
    database.close()
    assert found["content"].release == release.id
    assert (found["content"].bytes, found["content"].requests) == (pack.size + 100, 2)
    assert found["poll"].requests == 2


def test_each_step_of_a_rollout_is_written_down_once(tmp_path: Path) -> None:
    published = PublishedRepository(tmp_path / "repository")
    release = published.publish("1.0", "b1", rollout_percent=5)
    now = int(published.now)
    steps = (RolloutStep(since=now + 3600, percent=25),)
    set_rollout(published.repository, release.id, channel="stable", rollout=Rollout(percent=10, steps=steps))
    settings = ServerSettings.of_repository(published.directory)
    for _ in range(2):  # the server is started twice in each hour
        for _hour in range(2):
            with running(create_app(settings, clock=published.clock)) as site:
                assert site.ask("/fleet").status == 200
        published.now += 3600

    database = Database(settings.database_url)
    (changes,) = ExposureHistory(database).read(since=0).values()
    database.close()
    assert [(change.at, change.percent) for change in changes] == [(now, 10.0), (now + 3600, 25.0)]
