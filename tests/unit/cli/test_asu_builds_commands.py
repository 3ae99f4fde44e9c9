"""`overhaul builds`: what an operator sees of the queue, and how worker and signer work together as processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.imagebuilder import TARGET, UPSTREAM, StandInUpstream
from tests.loopback import serving
from tests.tools import need

from overhaul.builds.opening import Works
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildState
from overhaul.builds.settings import UnusableSettingsError, load_settings
from overhaul.cli.builds import command
from overhaul.server.database.engine import Database
from overhaul.trust.usign import generate_usign_key, verify_usign

RECIPE = Recipe(
    builder="openwrt",
    distribution="openwrt",
    version="23.05.5",
    target=TARGET,
    profile="tplink_archer-c7-v2",
    packages=("vim",),
)


def _call(path: Path, *arguments: str) -> Result:
    words = [*arguments, "--settings", str(path)]
    return CliRunner().invoke(command, words, catch_exceptions=False)


def _write_settings(tmp_path: Path, more: str = "") -> Path:
    path = tmp_path / "builds.toml"
    path.write_text(more)
    return path


def _submit(path: Path) -> int:
    works = Works(settings=load_settings(path), base=path.parent)
    database = Database(works.database_url())
    build = works.queue(database).submit(RECIPE, names=["abc"], client="c").build
    database.close()
    return build.build_id


def test_the_queue_is_listed_shown_and_cancelled(tmp_path: Path) -> None:
    path = _write_settings(tmp_path)
    assert json.loads(_call(path, "queue", "list", "--json").output) == []
    build_id = _submit(path)

    assert "tplink_archer-c7-v2" in _call(path, "queue", "list").output
    shown = json.loads(_call(path, "queue", "show", str(build_id), "--log", "--json").output)
    assert (shown["state"], shown["position"], shown["packages"], shown["log"]) == ("queued", 0, ["vim"], "")
    assert "state: queued" in _call(path, "queue", "show", str(build_id)).output
    assert "cancelled" in _call(path, "queue", "cancel", str(build_id)).output
    assert json.loads(_call(path, "queue", "list", "--state", "queued", "--json").output) == []
    assert json.loads(_call(path, "collect", "--json").output)["artefacts"] == 0
    assert "0 images" in _call(path, "collect").output


def test_settings_that_say_nothing_usable_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableSettingsError, match="does not exist"):
        load_settings(tmp_path / "none.toml")
    for text in ("[queue]\nwaiting = 0", "[unknown]", "[openwrt]\nenabled = 1", "\x00", "[limits]\nmemory_mib = 1e99"):
        with pytest.raises(UnusableSettingsError):
            load_settings(_write_settings(tmp_path, text))


def test_a_signing_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(generate_usign_key().text())
    key.chmod(0o644)
    works = Works(settings=load_settings(_write_settings(tmp_path, '[signer]\nkey = "key"')), base=tmp_path)
    database = Database(works.database_url())
    with pytest.raises(UnusableSettingsError, match="chmod 600"):
        works.signer(database)
    database.close()


def test_worker_and_signer_are_processes_of_their_own(tmp_path: Path) -> None:
    need("bwrap")
    need("make")
    upstream, key = StandInUpstream(), generate_usign_key()
    upstream.put()
    (tmp_path / "key").write_text(key.text())
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "upstream.pub").write_text(upstream.key.public.text())
    root = tmp_path / "upstream"
    for url, data in upstream.files.items():
        file = root / url.removeprefix(UPSTREAM).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    with serving(root) as server:
        path = _write_settings(
            tmp_path,
            f'[openwrt]\nenabled = true\nupstream_url = "{server.url}"\nallow_http = true\n'
            'usign_keys = ["upstream.pub"]\nnetwork = false\n[signer]\nkey = "key"\nsocket = "s"\n',
        )
        build_id = _submit(path)
        overhaul = [sys.executable, "-m", "overhaul", "builds"]
        with subprocess.Popen(
            [*overhaul, "signer", "--settings", path], stderr=subprocess.PIPE, text=True, cwd=tmp_path
        ) as signer:
            assert signer.stderr is not None
            assert key.public.key_id in signer.stderr.readline()
            done = subprocess.run([*overhaul, "worker", "--once", "--settings", path], check=False, umask=0o077)
            assert done.returncode == 0
            os.kill(signer.pid, signal.SIGTERM)
            assert signer.wait() == 0
    works = Works(settings=load_settings(path), base=tmp_path)
    database = Database(works.database_url())
    end = works.queue(database).find(build_id)
    database.close()

    assert end.state is BuildState.FINISHED, end.failure
    place = works.store().served / "abc"
    verify_usign((place / "build.json").read_bytes(), (place / "build.json.sig").read_text(), (key.public,), name="b")
