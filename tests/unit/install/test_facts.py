"""What a device finds out about itself, below an injected root."""

from pathlib import Path

import pytest

from overhaul.install.facts import OsRelease, memory_bytes, read_hardware, read_os_release


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_running_version_is_read_with_its_quotes_undone(tmp_path: Path) -> None:
    text = "# a comment\nIMAGE_VERSION='3.7.1'\nVERSION_ID=3\nBUILD_ID=\"20260101\"\nOVERHAUL_CHANNEL=beta\n"
    lay(tmp_path, {"etc/os-release": text})
    assert read_os_release(tmp_path) == OsRelease(version="3.7.1", build_id="20260101", channel="beta")


def test_without_an_image_version_the_version_id_counts(tmp_path: Path) -> None:
    lay(tmp_path, {"usr/lib/os-release": 'VERSION_ID="12"\nPRETTY_NAME="unclosed\n'})
    assert read_os_release(tmp_path) == OsRelease(version="12")


def test_no_os_release_is_no_error(tmp_path: Path) -> None:
    assert read_os_release(tmp_path) == OsRelease()


def test_a_computer_is_known_by_dmi_and_its_rounded_memory(tmp_path: Path) -> None:
    dmi = "sys/class/dmi/id"
    lay(
        tmp_path,
        {
            f"{dmi}/sys_vendor": "Valve\n",
            f"{dmi}/product_name": "Jupiter\n",
            f"{dmi}/board_name": "\n",
            f"{dmi}/product_serial": "SECRET-1\n",
            "etc/machine-id": "SECRET-2\n",
            "proc/meminfo": "MemTotal:       15966032 kB\nMemAvailable:    1000 kB\n",
        },
    )
    facts = read_hardware(tmp_path)
    assert facts == {"vendor": "Valve", "model": "Jupiter", "memory_mb": "15616"}
    assert "SECRET" not in str(facts)


def test_a_board_is_known_by_its_device_tree(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/device-tree/model": "Pi 4\0", "proc/device-tree/compatible": "vendor,pi4\0vendor,soc\0"})
    assert read_hardware(tmp_path) == {"model": "Pi 4", "compatible": "vendor,pi4"}


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: many kB\n", "Other: 4 kB\n"])
def test_memory_that_is_not_told_is_not_known(tmp_path: Path, text: str) -> None:
    lay(tmp_path, {"proc/meminfo": text})
    assert memory_bytes(tmp_path, "MemAvailable") is None


def test_this_machine_tells_its_memory() -> None:
    available = memory_bytes(Path("/"), "MemAvailable")
    assert available is not None
    assert available > 1 << 20
