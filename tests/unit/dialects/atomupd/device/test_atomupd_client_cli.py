"""`steamos-atomupd-client` as it is called: what it asks for, prints, leaves behind and ends with.

`rauc` is a stand-in here, a script that notes its arguments; the real one is used in tests/interop.
"""

import base64
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.atomupd_answers import RUNNING, image, static_files, update_to, write_manifest
from tests.atomupd_devices import write_configuration
from tests.loopback import LoopbackServer, serving

from overhaul.dialects.atomupd.candidates import NO_UPDATE, Update, encode_file, encode_line
from overhaul.dialects.atomupd.device import opening
from overhaul.dialects.atomupd.device.cli import main

NEXT = image(version="3.7.0", buildid="20240201.1")
LATER = image(version="3.7.1", buildid="20240301.1")
STANDARD = "meta/holo/steamos/amd64/steamdeck/stable/3.6.0/20240101.1.json"
FALLBACK = "meta/holo/steamos/amd64/steamdeck/stable.json"


@dataclass
class Setting:
    """A device, and the server it asks."""

    directory: Path
    server: LoopbackServer

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    @property
    def installed(self) -> list[str]:
        """What RAUC was called with."""
        log = self.directory / "rauc.log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def asked(self) -> list[str]:
        """The paths the server was asked for."""
        return [seen.path for seen in self.server.requests]

    def configure(self, *, early: bool = False, **client: str) -> Path:
        address = {"QueryUrl": f"{self.server.url}/updates"} if early else {"MetaUrl": f"{self.server.url}/meta"}
        return write_configuration(
            self.directory / "client.conf",
            {
                "Server": {**address, "ImagesUrl": f"{self.server.url}/images/"},
                "Host": {
                    "Manifest": str(self.manifest),
                    "RuntimeDir": str(self.runtime),
                    "WantUnstable": client.pop("WantUnstable", "no"),
                },
                "Client": {"AllowHttp": "yes", **client},
                "Install": {
                    "Method": "rauc-command",
                    "RaucConfiguration": str(self.directory / "system.conf"),
                    "RaucFallbackConfiguration": str(self.directory / "fallback-system.conf"),
                },
            },
        )

    def run(self, *arguments: str | Path, early: bool = False) -> int:
        configuration = self.directory / "client.conf"
        if not configuration.exists():
            self.configure(early=early)
        return main(["--config", str(configuration), *map(str, arguments)])

    def answer(self, update: Update, **options: str) -> None:
        self.server.files.update(static_files(update, **options))  # type: ignore[arg-type]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("rauc", f'echo "$@" >> {tmp_path}/rauc.log\ntest ! -e {tmp_path}/rauc-fails || exit 1\n'),
        ("journalctl", "exit 1\n"),
        ("systemctl", f'echo "$@" >> {tmp_path}/systemctl.log\n'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/no-bus")
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with serving() as server:
        made = Setting(tmp_path, server)
        write_manifest(made.manifest)
        yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


class TestNewest:
    """With a MetaUrl: files, and the exit codes of today."""

    def test_what_is_offered_is_printed(self, setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
        setting.answer(update_to(NEXT, LATER))
        assert setting.run("--query-only") == 0
        text = printed(capsys)
        assert [one["image"]["buildid"] for one in json.loads(text)["minor"]["candidates"]] == [
            "20240201.1",
            "20240301.1",
        ]
        assert text.startswith('{\n  "minor": {\n    "release": "holo"')
        assert (setting.installed, setting.asked) == ([], [STANDARD])
        assert not setting.runtime.exists()

    @pytest.mark.parametrize("body", [b"{}", b'""', b"null"])
    def test_no_update_prints_nothing(self, setting: Setting, capsys: pytest.CaptureFixture[str], body: bytes) -> None:
        setting.server.files[STANDARD] = body
        assert (setting.run("--query-only"), printed(capsys)) == (0, "")
        assert (setting.run(), setting.installed) == (0, [])

    @pytest.mark.parametrize("body", [b"", b" \n", b"<html>", b"[1]", b'{"minor": {"release": "holo"}}', b"\xff"])
    def test_an_answer_that_is_none_is_an_error_and_no_traceback(
        self, setting: Setting, caplog: pytest.LogCaptureFixture, body: bytes
    ) -> None:
        setting.server.files[STANDARD] = body
        assert setting.run("--query-only") == 1
        assert "The server's answer cannot be used" in caplog.text
        assert "Traceback" not in caplog.text

    def test_the_image_that_runs_is_not_offered(self, setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
        setting.answer(update_to(image()))
        assert (setting.run("--query-only"), printed(capsys)) == (0, "")

    def test_what_follows_the_image_that_runs_is_offered(
        self, setting: Setting, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setting.answer(update_to(LATER, image(), NEXT))
        assert setting.run("--query-only") == 0
        found = json.loads(printed(capsys))["minor"]["candidates"]
        assert [one["image"]["version"] for one in found] == ["3.7.0", "3.7.1"]

    def test_a_list_that_passes_through_the_image_that_runs_is_refused(self, setting: Setting) -> None:
        setting.answer(update_to(image(version="3.5.0", buildid="20230101.1"), image(), NEXT))
        assert setting.run("--query-only") == 1

    def test_an_unknown_build_gets_the_fallback_of_its_branch(
        self, setting: Setting, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setting.server.files[FALLBACK] = encode_file(update_to(NEXT))
        assert setting.run("--query-only") == 0
        assert "20240201.1" in printed(capsys)
        assert setting.asked == [STANDARD, FALLBACK]

    def test_an_unknown_branch_ends_with_2(self, setting: Setting) -> None:
        assert setting.run("--query-only", "--branch", "nightly") == 2
        assert setting.asked == [
            "meta/holo/steamos/amd64/steamdeck/nightly/3.6.0/20240101.1.json",
            "meta/holo/steamos/amd64/steamdeck/nightly.json",
        ]

    def test_trouble_of_the_server_ends_with_1_and_asks_no_further(self, setting: Setting) -> None:
        setting.server.behave(STANDARD, statuses=[500])
        setting.server.files[FALLBACK] = encode_file(update_to(NEXT))
        assert (setting.run("--query-only"), setting.asked) == (1, [STANDARD])

    def test_a_server_that_is_not_there_ends_with_1(self, setting: Setting) -> None:
        setting.server.url = "http://127.0.0.1:1"
        assert setting.run("--query-only") == 1

    @pytest.mark.parametrize("behaviour", [{"cut_after": [10]}, {"length_error": 5}])
    def test_an_answer_that_breaks_off_is_no_answer(self, setting: Setting, behaviour: dict[str, object]) -> None:
        setting.answer(update_to(NEXT))
        setting.server.behave(STANDARD, **behaviour)
        assert (setting.run(), setting.installed) == (1, [])

    @pytest.mark.parametrize(
        ("manifest", "arguments", "paths"),
        [
            ({"default_update_branch": "beta"}, [], ["steamdeck/beta/3.6.0/20240101.1.json", "steamdeck/beta.json"]),
            ({"branch": None}, [], ["steamdeck/stable/3.6.0/20240101.1.json", "steamdeck/stable.json"]),
            (
                {"introduces_checkpoint": 2, "requires_checkpoint": 1},
                [],
                ["steamdeck/stable/3.6.0/20240101.1.json", "steamdeck/stable.cp2.json"],
            ),
            ({}, ["--variant", "steamdeck"], ["steamdeck/stable/3.6.0/20240101.1.json", "steamdeck/stable.json"]),
            ({}, ["--variant", "vanilla"], ["vanilla/stable.json", "vanilla/stable.json"]),
            ({}, ["--penultimate-update"], ["steamdeck/stable.second_last.json"]),
            ({}, ["--penultimate-update", "--branch", "rc"], ["steamdeck/rc.second_last.json"]),
        ],
    )
    def test_the_files_that_are_asked_for(
        self, setting: Setting, manifest: dict[str, object], arguments: list[str], paths: list[str]
    ) -> None:
        write_manifest(setting.manifest, **manifest)
        assert setting.run("--query-only", *arguments) == 2
        assert setting.asked == [f"meta/holo/steamos/amd64/{path}" for path in paths]

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ([], "steamdeck-beta"),
            (["--branch", "main", "--variant", "vanilla"], "steamdeck-main"),
            (["--branch", "stable"], "steamdeck"),
            (["--variant", "steamdeck-rc"], "steamdeck-rc"),
        ],
    )
    def test_legacy_images_are_asked_for_by_their_variant(
        self, setting: Setting, arguments: list[str], name: str
    ) -> None:
        write_manifest(setting.manifest, branch=None, default_update_branch=None, variant="steamdeck-beta")
        assert setting.run("--query-only", *arguments) == 2
        assert setting.asked == [
            f"meta/steamos/amd64/3.6.0/{name}/20240101.1.json",
            f"meta/steamos/amd64/3.6.0/{name}.json",
        ]

    def test_the_first_candidate_is_installed(self, setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
        setting.answer(update_to(NEXT, LATER))
        assert setting.run() == 0
        assert setting.installed == [f"install {setting.server.url}/images/chunked.raucb"]
        assert printed(capsys) == "0%\n100%\n"

    def test_a_path_is_quoted_for_its_way(self, setting: Setting) -> None:
        setting.answer(update_to(NEXT, stem="steamos/3.7.0+1/a b%20"))
        assert setting.run() == 0
        assert setting.installed == [f"install {setting.server.url}/images/steamos/3.7.0+1/a%20b%2520.raucb"]

    @pytest.mark.parametrize("stem", ["../secret", "/etc/x", "a/../../b", "a\nb"])
    def test_a_path_that_leaves_the_images_is_refused(self, setting: Setting, stem: str) -> None:
        setting.answer(update_to(NEXT, stem=stem))
        assert (setting.run(), setting.installed) == (1, [])

    @pytest.mark.parametrize(("version", "code"), [("20240201.1", 0), ("20240201.01", 0), ("20240301.1", 1), ("x", 1)])
    def test_only_the_build_that_was_meant_is_installed(self, setting: Setting, version: str, code: int) -> None:
        setting.answer(update_to(NEXT, LATER))
        assert setting.run("--update-version", version) == code
        assert len(setting.installed) == (1 if code == 0 else 0)

    def test_an_update_file_stands_for_the_server(self, setting: Setting) -> None:
        file = setting.directory / "answer.json"
        file.write_bytes(encode_line(update_to(NEXT)))
        assert (setting.run("--update-file", file), len(setting.installed), setting.asked) == (0, 1, [])
        assert file.exists()

    @pytest.mark.parametrize("content", [b"", b"{", None])
    def test_an_update_file_that_is_none_is_an_error(self, setting: Setting, content: bytes | None) -> None:
        file = setting.directory / "answer.json"
        if content is not None:
            file.write_bytes(content)
        assert (setting.run("--update-file", file), setting.installed) == (1, [])

    def test_a_stale_answer_of_an_early_client_is_removed(self, setting: Setting) -> None:
        setting.runtime.mkdir()
        (setting.runtime / "update.json").write_text("{}")
        setting.server.files[STANDARD] = b"{}"
        assert setting.run() == 0
        assert not (setting.runtime / "update.json").exists()

    def test_a_failure_is_remembered_and_the_fallback_taken_after_too_many(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "SYSTEMD_RUNTIME", setting.directory)
        setting.answer(update_to(NEXT))
        for name in ("rauc-fails", "system.conf", "fallback-system.conf"):
            (setting.directory / name).touch()
        codes = [setting.run("--fallback-after-failed-attempts", "1") for _attempt in range(3)]
        assert codes == [1, 1, 1]
        log = (setting.runtime / "failed_attempts.log").read_text().splitlines()
        assert [line.startswith("FAILED UPDATE: ") for line in log] == [True, True, True]
        fallback = f"set-environment STEAMOS_CUSTOM_RAUC_CONF={setting.directory}/fallback-system.conf"
        told = (setting.directory / "systemctl.log").read_text().splitlines()
        rest = ["import-environment http_proxy https_proxy", "restart rauc"]
        usual = ["unset-environment STEAMOS_CUSTOM_RAUC_CONF", *rest]
        assert told == [*usual, *usual, fallback, *rest]

    def test_another_chunk_store_gets_into_the_configuration_of_rauc(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "SYSTEMD_RUNTIME", setting.directory)
        (setting.directory / "system.conf").write_text("[system]\ncompatible=x\n[casync]\nstorepath=old\n")
        store = f"{setting.server.url}/shared.castr"
        assert setting.run("--update-from-url", f"{setting.server.url}/a.raucb", "--chunks-store-url", store) == 0
        assert (setting.runtime / "rauc.conf").read_text() == (f"[system]\ncompatible=x\n[casync]\nstorepath={store}\n")

    def test_a_password_is_given_to_who_asks_for_it(self, setting: Setting) -> None:
        (setting.directory / ".netrc").write_text("machine 127.0.0.1 login gordon password free\n")
        (setting.directory / ".netrc").chmod(0o600)
        setting.answer(update_to(NEXT))
        setting.server.behave(STANDARD, statuses=[401])
        assert setting.run("--query-only") == 0
        first, second = setting.server.requests
        assert "authorization" not in first.headers
        assert base64.b64decode(second.headers["authorization"].removeprefix("Basic ")) == b"gordon:free"

    def test_nothing_of_the_hardware_is_told_unless_its_owner_names_it(self, setting: Setting) -> None:
        setting.answer(NO_UPDATE)
        assert setting.run("--query-only") == 0
        assert setting.asked == [STANDARD]

    def test_what_the_owner_names_is_told(self, setting: Setting) -> None:
        place = setting.directory / "state/rollout"
        setting.configure(Hardware="memory_mb", Attended="yes", Rollout=str(place))
        codes = {setting.run("--query-only") for _time in range(2)}
        assert codes == {2}
        told = {path.partition("?")[2] for path in setting.asked}
        [parameters] = told
        assert parameters.startswith("hardware.memory_mb=")
        assert parameters.endswith(f"&attended=True&rollout={int(place.read_text())}")
        assert 0 <= int(place.read_text()) < 100

    def test_the_proxy_of_the_environment_is_used(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        setting.answer(update_to(NEXT))
        address = setting.server.url
        monkeypatch.setenv("http_proxy", address)
        setting.server.url = "http://updates.invalid"
        assert setting.run("--query-only") == 0

    def test_os_release_stands_for_the_manifest(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        os_release = setting.directory / "os-release"
        os_release.write_text(
            "ID=steamos\nVERSION_CODENAME=holo\nVARIANT_ID=steamdeck\nVERSION_ID=3.6\nBUILD_ID=20240101.1\n"
            "STEAMOS_DEFAULT_UPDATE_BRANCH=beta\n"
        )
        monkeypatch.setattr("overhaul.dialects.atomupd.device.updating._OS_RELEASE", (os_release,))
        assert setting.run("--query-only", "--mk-manifest-file") == 2
        assert setting.asked[0].endswith("/steamdeck/beta/3.6.0/20240101.1.json")

    def test_a_missing_manifest_is_named(self, setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
        setting.manifest.unlink()
        assert setting.run("--query-only") == 1
        assert "manifest.json cannot be used: No such file" in caplog.text

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--no-such-option"],
            ["--manifest-file", "x", "--mk-manifest-file"],
            ["--chunks-store-url", "https://a.example"],
            ["--fallback-after-failed-attempts", "-1"],
        ],
    )
    def test_wrong_usage_ends_with_2(self, setting: Setting, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as ending:
            setting.run(*arguments)
        assert ending.value.code == 2


class TestEarly:
    """With a QueryUrl only: parameters, update.json, and the exit codes of the first clients."""

    @pytest.fixture(autouse=True)
    def _early(self, setting: Setting) -> None:
        setting.configure(early=True)
        fields = {**RUNNING, "branch": None, "default_update_branch": None, "variant": "atomic", "release": "doom"}
        write_manifest(setting.manifest, **fields)

    def respond(self, setting: Setting, body: bytes, *, unstable: bool = False) -> str:
        path = (
            "updates?product=steamos&release=doom&variant=atomic&arch=amd64&version=3.6.0&buildid=20240101.1"
            f"&checkpoint=False&want-unstable={unstable}"
        )
        setting.server.files[path] = body
        return path

    def document(self, *versions: str, checkpoints: tuple[str, ...] = ()) -> bytes:
        candidates = [
            {
                "image": {
                    **{name: RUNNING[name] for name in ("product", "arch")},
                    "release": "doom",
                    "variant": "atomic",
                    "version": version,
                    "buildid": f"2024020{number}.1",
                    "checkpoint": version in checkpoints,
                },
                "update_path": f"{version}.raucb",
            }
            for number, version in enumerate(versions, start=1)
        ]
        return json.dumps({"minor": {"release": "doom", "candidates": candidates}}).encode()

    def test_an_update_ends_with_1_and_its_answer_is_kept(self, setting: Setting) -> None:
        path = self.respond(setting, self.document("3.7.0", "3.8.0"))
        assert setting.run() == 1
        assert setting.asked == [path]
        assert setting.installed == [f"install {setting.server.url}/images/3.7.0.raucb"]
        kept = json.loads((setting.runtime / "update.json").read_text())
        assert [one["update_path"] for one in kept["minor"]["candidates"]] == ["3.7.0.raucb", "3.8.0.raucb"]

    @pytest.mark.parametrize("body", [b"", b'""', b"{}"])
    def test_no_update_ends_with_0_and_removes_a_stale_answer(self, setting: Setting, body: bytes) -> None:
        self.respond(setting, body)
        setting.runtime.mkdir()
        (setting.runtime / "update.json").write_text("stale")
        assert (setting.run(), setting.installed) == (0, [])
        assert not (setting.runtime / "update.json").exists()

    def test_a_query_only_keeps_the_answer_and_prints_nothing(
        self, setting: Setting, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.respond(setting, self.document("3.7.0"))
        assert (setting.run("--query-only"), printed(capsys), setting.installed) == (0, "", [])
        assert (setting.runtime / "update.json").read_text().startswith('{\n  "minor"')

    @pytest.mark.parametrize("body", [b"<html>", None])
    def test_an_error_ends_with_255_and_keeps_what_was_known(self, setting: Setting, body: bytes | None) -> None:
        if body is not None:
            self.respond(setting, body)
        setting.runtime.mkdir()
        (setting.runtime / "update.json").write_text("known")
        assert setting.run() == 255
        assert (setting.runtime / "update.json").read_text() == "known"

    def test_a_failed_installation_ends_with_255(self, setting: Setting) -> None:
        self.respond(setting, self.document("3.7.0"))
        (setting.directory / "rauc-fails").touch()
        assert setting.run() == 255

    def test_the_next_release_is_preferred(self, setting: Setting) -> None:
        document = json.loads(self.document("3.7.0"))
        document["major"] = json.loads(self.document("4.0.0"))["minor"]
        self.respond(setting, json.dumps(document).encode())
        assert setting.run() == 1
        assert setting.installed == [f"install {setting.server.url}/images/4.0.0.raucb"]

    @pytest.mark.parametrize(
        ("versions", "checkpoints", "installed"),
        [
            (("3.7.0-rc1", "3.7.0"), (), "3.7.0"),
            (("3.7.0-rc1", "3.7.0"), ("3.7.0-rc1",), None),
            (("3.7.0", "3.8.0-rc1"), (), "3.7.0"),
            (("3.7.0-rc1",), (), None),
        ],
    )
    def test_unstable_images_are_not_taken_unless_wanted_whatever_the_server_says(
        self, setting: Setting, versions: tuple[str, ...], checkpoints: tuple[str, ...], installed: str | None
    ) -> None:
        self.respond(setting, self.document(*versions, checkpoints=checkpoints))
        assert setting.run() == (0 if installed is None else 1)
        assert [line.rsplit("/", 1)[-1] for line in setting.installed] == ([f"{installed}.raucb"] if installed else [])

    def test_unstable_images_are_taken_when_wanted(self, setting: Setting) -> None:
        setting.configure(early=True, WantUnstable="yes")
        self.respond(setting, self.document("3.7.0-rc1"), unstable=True)
        assert setting.run() == 1
        assert setting.installed == [f"install {setting.server.url}/images/3.7.0-rc1.raucb"]

    def test_todays_exit_codes_can_be_had_with_the_early_protocol(self, setting: Setting) -> None:
        setting.configure(early=True, ExitCodes="newest")
        self.respond(setting, self.document("3.7.0"))
        assert setting.run() == 0


class TestConfiguration:
    """What the configuration must say."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (("MetaUrl", "Metaurl_"), "MetaUrl is missing"),
            (("ImagesUrl", "x"), "ImagesUrl is missing"),
            (("AllowHttp = yes", ""), "use https, or set AllowHttp = yes"),
            (("AllowHttp", "AlowHttp"), "unknown option 'alowhttp'"),
            (("http://", "ftp://"), "neither an https nor an http address"),
            (("rauc-command", "dpkg"), "Method is 'dpkg'"),
            (("[Server]", "[Server"), "cannot be used"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, setting: Setting, caplog: pytest.LogCaptureFixture, change: tuple[str, str], reason: str
    ) -> None:
        path = setting.configure()
        path.write_text(path.read_text().replace(*change))
        assert setting.run("--query-only") == 1
        assert reason in caplog.text

    def test_a_missing_configuration_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert main(["--config", str(tmp_path / "none.conf")]) == 1
        assert "none.conf cannot be used: No such file" in caplog.text

    def test_called_without_anything_and_not_configured_it_tells_how(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "usage: steamos-atomupd-client" in printed(capsys)
