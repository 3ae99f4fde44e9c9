"""Files that several accounts write."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overhaul.host.rights import create_as_directory_says


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize(
    ("directory", "file"), [(0o755, 0o600), (0o700, 0o600), (0o750, 0o600), (0o770, 0o660), (0o2777, 0o660)]
)
def test_the_directory_and_not_the_umask_says_who_may_write(tmp_path: Path, directory: int, file: int) -> None:
    tmp_path.chmod(directory)

    create_as_directory_says(tmp_path / "file")

    assert (tmp_path / "file").stat().st_mode & 0o7777 == file


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    path.chmod(0o640)
    tmp_path.chmod(0o770)

    create_as_directory_says(path)

    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"kept", 0o640)
