"""The U-Boot backend without U-Boot's tools: what it asks them for, and how it tells what they answer."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from overhaul.host.processes import ProcessResult, ProgramFailedError, ProgramMissingError
from overhaul.install.boot import BootControlError, SlotStatus
from overhaul.install.opening import open_boot
from overhaul.install.settings import parse_settings
from overhaul.install.uboot import UBoot

TWO_COPIES = "# both\n/dev/mmcblk0 0x400000 0x20000\n\n/dev/mmcblk0 0x440000 0x20000\n"


class Tools:
    """Answers as U-Boot's tools do."""

    def __init__(self, printed: str = "", failure: Exception | None = None) -> None:
        self.printed = printed
        self.failure = failure
        self.scripts: list[str] = []

    def __call__(
        self, argv: Sequence[str | Path], *, input_bytes: bytes = b"", timeout_s: float | None = None
    ) -> ProcessResult:
        """Print the environment, or keep the script."""
        assert timeout_s
        if self.failure is not None:
            raise self.failure
        if argv[0] == "fw_setenv":
            assert argv[-2:] == ["-s", "/dev/stdin"]
            self.scripts.append(input_bytes.decode())
        return ProcessResult(stdout=self.printed.encode("utf-8", "surrogateescape"), stderr=b"")


def opened(directory: Path, tools: Tools, *, configuration: str | None = TWO_COPIES) -> UBoot:
    path = directory / "fw_env.config"
    if configuration is not None:
        path.write_text(configuration)
    return UBoot(path, {"A": Path("/dev/a"), "B": Path("/dev/b")}, root=directory, run_program=tools)


def test_all_variables_change_in_one_run(tmp_path: Path) -> None:
    tools = Tools("bootcmd=run it\n")
    opened(tmp_path, tools).try_next("B", attempts=2)
    assert tools.scripts == [
        "OVERHAUL_ORDER=B A\nOVERHAUL_A_OK=1\nOVERHAUL_A_TRY=0\nOVERHAUL_B_OK=0\nOVERHAUL_B_TRY=2\n"
    ]


def test_a_change_is_made_durable_even_when_it_seems_to_be_there(tmp_path: Path) -> None:
    tools = Tools()
    opened(tmp_path, tools).mark_bad("B")
    assert len(tools.scripts) == 1


def test_lines_of_other_values_are_not_taken_for_ours(tmp_path: Path) -> None:
    tools = Tools("help=first\nORDER=B A\nB_OK=1\n\udcff=x\nOVERHAUL_B_TRY=2\nno assignment\n")
    assert opened(tmp_path, tools).state("B").status is SlotStatus.TRIAL
    assert opened(tmp_path, tools).primary() == "A"


@pytest.mark.parametrize("configuration", ["", "# nothing\n", "/dev/mmcblk0 0x400000 0x20000\n", TWO_COPIES * 2])
def test_anything_but_two_copies_is_refused_before_a_change(tmp_path: Path, configuration: str) -> None:
    tools = Tools()
    with pytest.raises(BootControlError, match=r"fw_env\.config.*copies.*CONFIG_SYS_REDUNDAND_ENVIRONMENT"):
        opened(tmp_path, tools, configuration=configuration).mark_bad("B")
    assert tools.scripts == []


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BootControlError, match=r"fw_env\.config.*No such file"):
        opened(tmp_path, Tools(), configuration=None).mark_bad("B")


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (ProgramMissingError(program="fw_printenv"), "install libubootenv-tool"),
        (ProgramFailedError(program="fw_printenv", reason="ended with status 243", stderr_tail="Cannot"), "saveenv"),
    ],
)
def test_tools_that_fail_are_told_with_what_to_do(tmp_path: Path, failure: Exception, advice: str) -> None:
    with pytest.raises(BootControlError, match=advice):
        opened(tmp_path, Tools(failure=failure)).primary()


def test_the_backend_is_chosen_by_the_configuration(tmp_path: Path) -> None:
    text = """
    product = "weather"
    variant = "lite"
    arch = "amd64"
    [repository]
    urls = ["https://updates.test"]
    [slots]
    A = "/dev/a"
    B = "/dev/b"
    [boot]
    backend = "uboot"
    file = "/etc/fw_env.config"
    """
    assert isinstance(open_boot(parse_settings(text.encode(), tmp_path / "device.toml")), UBoot)
