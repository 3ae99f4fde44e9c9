"""server.ini of the old server: followed, or refused in a sentence."""

from pathlib import Path

import pytest

from overhaul.dialects.swupd.paths import DEBUG_DIRECTORIES
from overhaul.dialects.swupd.server_ini import ServerIniError, read_server_ini


def test_without_one_the_usual_places_hold(tmp_path: Path) -> None:
    found = read_server_ini(tmp_path)
    assert (found.images, found.web, found.debug_banned) == (tmp_path / "image", tmp_path / "www", False)


def test_places_and_debugging_files_are_taken_from_it(tmp_path: Path) -> None:
    (tmp_path / "server.ini").write_text(
        "[Server]\nemptydir=/srv/empty/\nimagebase=/srv/image/\noutputdir=out\n[Debuginfo]\nbanned=true\nsrc=/dbg\n"
    )
    found = read_server_ini(tmp_path)
    assert (found.images, found.web) == (Path("/srv/image"), tmp_path / "out")
    assert found.debug_banned
    assert found.debug_directories == (DEBUG_DIRECTORIES[0], b"/dbg/")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[Server]\nimagebas=/x\n", "'imagebas' in 'Server' is not known"),
        ("[Servers]\n", "the section 'Servers' is not known"),
        ("[Debuginfo]\nbanned=perhaps\n", "perhaps"),
        ("[Debuginfo]\nlib=/\n", "no absolute directory"),
        ("[Debuginfo]\nlib=usr/lib\n", "no absolute directory"),
        ("imagebase=/x\n", "no section headers"),
        ("\0" * ((1 << 20) + 1), "more than"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "server.ini").write_text(text)
    with pytest.raises(ServerIniError) as caught:
        read_server_ini(tmp_path)
    assert reason in str(caught.value)
    assert str(tmp_path / "server.ini") in str(caught.value)
