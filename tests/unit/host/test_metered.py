"""Whether the link in use is metered."""

from pathlib import Path

import pytest

from overhaul.host.metered import MeteredLink, ask_network_manager


def test_the_answer_is_remembered_for_a_while() -> None:
    now, answers = 100.0, [True, False]
    link = MeteredLink(monotonic=lambda: now, ask=lambda: answers.pop(0))

    assert link.is_metered()
    now += 29
    assert link.is_metered()
    now += 2
    assert not link.is_metered()


def test_a_system_without_a_bus_is_not_metered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")

    assert not ask_network_manager()
