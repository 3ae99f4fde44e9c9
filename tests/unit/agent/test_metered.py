"""Updates over a connection that costs money: deferred where the owner says so, and told."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from tests.devices import Bench, MemoryCost, settings_for

from overhaul.agent.checking import check
from overhaul.agent.outcomes import Checked, ExitCode, Ready, Updated
from overhaul.agent.ports import Device
from overhaul.agent.updating import update
from overhaul.install.boot import SlotStatus
from overhaul.install.settings import DeviceSettings
from overhaul.install.state import Phase
from overhaul.progress import Silence


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.repository.publish("1.0")
    made.repository.publish("2.0")
    made.boot.simulate_boot()
    return made


def _settings(bench: Bench, *, metered: str = "defer", limit: int = 0) -> DeviceSettings:
    plain = settings_for(bench.directory)
    repository = msgspec.structs.replace(plain.repository, metered=metered, metered_max_bytes=limit)
    return msgspec.structs.replace(plain, repository=repository)


def _device(bench: Bench, *, costs_money: bool = True) -> Device:
    return dataclasses.replace(bench.device, is_metered=lambda: costs_money)


def _update(bench: Bench, *, costs_money: bool = True) -> Updated | Ready | Checked:
    return update(_device(bench, costs_money=costs_money), progress=Silence())


def test_an_update_waits_for_a_connection_that_is_not_metered(bench: Bench) -> None:
    bench.settings = _settings(bench)
    answer = _update(bench)

    assert isinstance(answer, Checked)
    assert answer.exit_code is ExitCode.HELD
    assert "metered" in answer.waits
    assert bench.states.load().phase is Phase.IDLE
    assert bench.boot.state("B").status is not SlotStatus.TRIAL
    assert [report["outcome"] for report in bench.reporter.sent] == ["checked"]
    assert isinstance(_update(bench, costs_money=False), Updated)


def test_a_check_says_so_beforehand(bench: Bench) -> None:
    bench.settings = _settings(bench)

    assert "fetches nothing; 2.0 (b2.0) is fetched over the next" in check(_device(bench)).waits
    assert check(_device(bench)).exit_code is ExitCode.HELD
    assert check(_device(bench, costs_money=False)).exit_code is ExitCode.DONE


@pytest.mark.parametrize(("limit", "waits"), [(999, True), (1000, False)])
def test_a_small_update_need_not_wait(bench: Bench, limit: int, waits: bool) -> None:
    assert MemoryCost().download_bytes == 1000
    bench.settings = _settings(bench, limit=limit)
    answer = _update(bench)

    assert isinstance(answer, Checked) is waits
    if isinstance(answer, Checked):
        assert "at most 999 bytes, and 2.0 (b2.0) takes 1000" in answer.waits


def test_an_urgent_update_never_waits(bench: Bench) -> None:
    bench.settings = _settings(bench)
    entry = bench.repository.entries["2.0"]
    bench.repository.entries["2.0"] = msgspec.structs.replace(entry, urgent=True)
    bench.repository.unread = True

    assert isinstance(_update(bench), Updated)


def test_where_the_owner_does_not_care_nobody_is_asked(bench: Bench) -> None:
    def asked() -> bool:
        raise AssertionError

    bench.settings = _settings(bench, metered="allow")
    device = dataclasses.replace(bench.device, is_metered=asked)

    assert isinstance(update(device, progress=Silence()), Updated)
