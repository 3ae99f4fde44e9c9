"""The audit log: lines are only added, and every change of what was written shows."""

import itertools
import multiprocessing
from pathlib import Path

import msgspec
import pytest

from overhaul.server.operators.audit import AuditLog, AuditRecord, DamagedAuditError, UnwritableAuditError


def _log(directory: Path, lines: int = 4) -> AuditLog:
    log = AuditLog(directory / "server" / "audit.jsonl")
    for number in range(lines):
        log.append(at=1000 + number, operator="ada", address="192.0.2.1", act="pause", subject=f"release {number}")
    return log


def test_what_was_written_comes_back_the_newest_first(tmp_path: Path) -> None:
    log = _log(tmp_path)
    assert [record.subject for record in log.recent(limit=2)] == ["release 3", "release 2"]
    assert [record.number for record in log.recent(limit=10)] == [4, 3, 2, 1]
    assert log.verify()[0] == 4
    assert AuditLog(tmp_path / "none").verify() == (0, "0" * 64)
    assert AuditLog(tmp_path / "none").recent(limit=5) == ()


def test_any_flipped_bit_of_any_line_but_the_last_shows(tmp_path: Path) -> None:
    log = _log(tmp_path)
    whole = log.path.read_bytes()
    _lines, head = log.verify()
    for at in range(0, len(whole), 7):
        log.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedAuditError):
            log.verify(holds=head)
    log.path.write_bytes(whole)
    log.verify(holds=head)


def test_lines_removed_swapped_put_in_or_cut_off_show(tmp_path: Path) -> None:
    log = _log(tmp_path)
    _lines, head = log.verify()
    lines = log.path.read_bytes().splitlines(keepends=True)
    forged = msgspec.json.encode(
        AuditRecord(
            number=5, at=1, operator="eve", address="", act="recall", subject="", details="", result="done",
            previous="0" * 64,
        )
    )  # fmt: skip
    for changed in (
        lines[:1] + lines[2:],
        lines[1:],
        [lines[1], lines[0], *lines[2:]],
        [*lines, forged + b"\n"],
        [*lines, b"a line that is no record\n"],
    ):
        log.path.write_bytes(b"".join(changed))
        with pytest.raises(DamagedAuditError):
            log.verify()

    log.path.write_bytes(b"".join(lines[:-1]))
    assert log.verify()[0] == 3, "a chain that was cut off fits"
    with pytest.raises(DamagedAuditError, match="no line has the digest"):
        log.verify(holds=head)


def test_a_line_torn_at_any_length_is_kept_and_the_log_goes_on(tmp_path: Path) -> None:
    log = _log(tmp_path, 3)
    whole = log.path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for length in range(begin + 1, len(whole)):
        log.path.write_bytes(whole[:length])
        log.append(at=2000, operator="ada", address="", act="recall")
        assert log.verify()[0] == 4
        assert log.recent(limit=1)[0].act == "recall"


def _append_many(path: Path) -> None:
    log = AuditLog(path)
    for number in range(25):
        log.append(at=number, operator="ada", address="", act="pause")


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_append_many, args=(path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert AuditLog(path).verify()[0] == 75


def test_long_words_are_bounded_and_newlines_stay_inside_their_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append(at=1, operator="a" * 500, address="b\n" * 500, act="c", subject="d" * 5000, result="ä" * 5000)
    log.append(at=2, operator="ada", address="", act="pause")
    assert log.verify()[0] == 2
    assert len(log.recent(limit=2)[1].operator) == 64


def test_many_lines_are_read_from_the_end(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(40):
        log.append(at=number, operator="ada", address="", act="pause", details="x" * 900)
    line = log.path.read_bytes()
    assert len(line) > 1 << 15
    assert [record.at for record in itertools.islice(log.recent(limit=40), 40)] == list(reversed(range(40)))


def test_a_log_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(UnwritableAuditError, match="cannot be written"):
        log.append(at=1, operator="ada", address="", act="pause")
    with pytest.raises(UnwritableAuditError):
        log.check_writable()
