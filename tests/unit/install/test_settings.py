"""device.toml: what is taken, what is refused, and that the template holds what it was told."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.settings import SettingsError, SettingsMissingError, load_settings, parse_settings
from overhaul.install.template import Answers, render_template

HERE = Path("/etc/overhaul/device.toml")
ANSWERS = Answers(
    product="weather",
    variant="lite",
    arch="amd64",
    channel="stable",
    version="1.0",
    build_id="b1",
    urls=["https://updates.test/repo/", "https://mirror.test"],
    allow_http=False,
    slots={"A": "/dev/a", "B": "slots/b.img"},
    root_metadata="root.json",
    state_directory="/var/lib/overhaul",
    boot_backend="grub",
    boot_file="/boot/grub/grubenv",
    report_url="",
)
MINIMAL = """
product = "weather"
variant = "lite"
arch = "amd64"
[repository]
urls = ["https://updates.test"]
[slots]
A = "/dev/a"
B = "/dev/b"
"""


def test_the_template_is_a_configuration_that_holds_the_answers() -> None:
    settings = parse_settings(render_template(ANSWERS).encode(), HERE)
    assert (settings.product, settings.channel, settings.version, settings.build_id) == (
        "weather",
        "stable",
        "1.0",
        "b1",
    )
    assert settings.repository.urls == ("https://updates.test/repo", "https://mirror.test")
    assert settings.slots == {"A": "/dev/a", "B": "/etc/overhaul/slots/b.img"}
    assert settings.root_metadata == "/etc/overhaul/root.json"
    assert settings.boot.backend == "grub"


def test_what_was_not_answered_stands_in_the_template_as_a_comment() -> None:
    text = render_template(replace(ANSWERS, channel=None, version=None, build_id=None))
    assert '# channel = "stable"' in text
    assert parse_settings(text.encode(), HERE).channel is None


def test_every_key_of_the_template_that_is_a_comment_would_be_taken() -> None:
    text = render_template(ANSWERS)
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and "`" not in line else line
        for line in text.splitlines()
    )
    settings = parse_settings(uncommented.encode(), HERE)
    assert settings.repository.proxy == "http://proxy.example.com:3128"
    assert settings.window is not None
    assert settings.health.enter[0] == "nsenter"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_path_survives_the_template(path: str) -> None:
    text = render_template(replace(ANSWERS, root_metadata=f"/{path}"))
    assert parse_settings(text.encode(), HERE).root_metadata == str(Path("/etc/overhaul") / f"/{path}")


def test_defaults_are_careful() -> None:
    settings = parse_settings(MINIMAL.encode(), HERE)
    assert settings.repository.allow_http is False
    assert settings.repository.accept_builds is False
    assert settings.reboot.policy == "never"
    assert settings.reports.url == ""
    assert settings.window is None


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("[boots]\nx = 1\n", "boots"),
        ("[boot]\nattempt = 3\n", "attempt"),
        ("[boot]\nattempts = 10\n", "boot.attempts"),
        ("[boot]\nbackend = 'lilo'\n", "lilo"),
        ("[health]\nbudget_s = 0\n", "health.budget_s"),
        ("[reboot]\nwindow = '2-5'\n", "2-5"),
        ("[reboot]\npolicy = 'force'\n", "force"),
        ("= 3\n", "line"),
    ],
)
def test_a_wrong_or_unknown_key_is_refused_by_name(added: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        parse_settings((MINIMAL + added).encode(), HERE)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('product = "weather"', 'product = "Wea ther"'),
        ('product = "weather"', ""),
        ('B = "/dev/b"\n', ""),
        ("A =", '"A/1" ='),
        ("/dev/b", "/dev/a"),
        ("/dev/b", "/dev/../dev/a"),
        ('"https://updates.test"', ""),
        ("https:", "ftp:"),
    ],
)
def test_what_names_the_device_and_its_slots_must_be_usable(old: str, new: str) -> None:
    with pytest.raises(SettingsError):
        parse_settings(MINIMAL.replace(old, new).encode(), HERE)


def test_no_configuration_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsMissingError, match="overhaul device init"):
        load_settings(tmp_path / "device.toml")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SettingsError):
        parse_settings(b"\xff\xfe", HERE)
