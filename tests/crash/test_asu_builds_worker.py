"""A worker killed in mid-build: the next one builds its build, its sandbox is gone, nothing half-made is served."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from overhaul.builds.opening import Works
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildState
from overhaul.builds.retention import Retention, collect_garbage
from overhaul.builds.settings import load_settings
from overhaul.builds.tables import BUILDS
from overhaul.server.database.engine import Database
from overhaul.trust.usign import generate_usign_key
from tests.imagebuilder import TARGET, UPSTREAM, StandInUpstream
from tests.loopback import serving
from tests.tools import need
from tests.waiting import until


def test_a_killed_worker_leaves_its_build_to_the_next(tmp_path: Path) -> None:
    need("bwrap")
    need("make")
    upstream = StandInUpstream()
    upstream.put()
    (tmp_path / "upstream.pub").write_text(upstream.key.public.text())
    (tmp_path / "key").write_text(generate_usign_key().text())
    (tmp_path / "key").chmod(0o600)
    for url, data in upstream.files.items():
        file = tmp_path / "upstream" / url.removeprefix(UPSTREAM).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    with serving(tmp_path / "upstream") as server:
        settings = tmp_path / "builds.toml"
        settings.write_text(
            f'[openwrt]\nenabled = true\nupstream_url = "{server.url}"\n'
            'allow_http = true\nusign_keys = ["upstream.pub"]\nnetwork = false\n[signer]\nkey = "key"\nsocket = "s"\n'
        )
        works = Works(settings=load_settings(settings), base=tmp_path)
        database = Database(works.database_url())
        queue = works.queue(database)
        recipe = Recipe(
            builder="openwrt", distribution="openwrt", version="23.05.5", target=TARGET, profile="tplink_archer-c7-v2",
            packages=("slow",),
        )  # fmt: skip
        build_id = queue.submit(recipe, names=["abc"], client="c").build.build_id
        command = [sys.executable, "-m", "overhaul", "builds", "worker", "--settings", str(settings)]

        with _running(command) as first:
            while "Building images" not in queue.read_log(build_id).text:
                assert first.poll() is None
                queue.wait(0.05)
            assert _hanging_in(works.directory / "work")
            os.kill(first.pid, signal.SIGKILL)
        until(lambda: not _hanging_in(works.directory / "work"))
        assert queue.find(build_id).state is BuildState.STARTED
        assert not list(works.store().served.iterdir())
        # Its lease ends: one so short that it could be waited for here would end under workers that are alive, too.
        with database.writing() as connection:
            connection.execute(sa.update(BUILDS).values(lease_ends_at=0.0))

        with _running(command) as second:
            while queue.find(build_id).attempts < 2:
                assert second.poll() is None
                queue.wait(0.05)
            taken = queue.find(build_id)
            # The log grows by one begin: the second's.
            while queue.read_log(build_id).text.count("Building images") < 2:
                assert second.poll() is None
                queue.wait(0.05)
            queue.cancel(build_id)
            while not queue.find(build_id).state.is_over:
                queue.wait(0.05)
            os.kill(second.pid, signal.SIGTERM)
            assert second.wait() == 0
        end = queue.find(build_id)
        collect_garbage(queue, works.store(), now=2e9, retention=Retention(leftovers_s=1.0))
        database.close()

    assert taken.state is BuildState.STARTED
    assert end.state is BuildState.CANCELLED
    assert not list((works.store().root / "incoming").iterdir())


@contextmanager
def _running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _hanging_in(work: Path) -> list[str]:
    """Return the processes whose working directory lies below `work`."""
    found = []
    places = {path.stat().st_ino for path in work.rglob("builder")}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").stat().st_ino in places:
                found.append((process / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found
