"""U-Boot's environment in a file, through the real `fw_setenv` and `fw_printenv`, and the loader that reads it.

The loader is a stand-in: it follows the rules of `install.countdown`, which tests/interop/test_uboot.py shows to be
those of the real script in a real U-Boot.
"""

import subprocess
from pathlib import Path

from overhaul.host.processes import ProgramFailedError
from overhaul.host.processes import run as run_program
from overhaul.install.countdown import after_boot, chosen_slot, parse_variables, render_variables
from overhaul.install.uboot import RunsPrograms
from tests.tools import need

COPY_BYTES = 4096
_SLOTS = ("A", "B")


def make_environment(image: Path, configuration: Path, variables: str) -> None:
    """Make an environment with two copies in `image`, as `saveenv` does twice."""
    image.write_bytes(bytes(2 * COPY_BYTES))
    configure(image, configuration)
    defaults = configuration.with_name("defaults")
    defaults.write_text("bootdelay=2\n")
    for _ in range(2):
        set_variables(configuration, variables or "bootdelay=2\n", "-f", str(defaults))


def configure(image: Path, configuration: Path) -> None:
    """Write where both copies lie."""
    configuration.write_text(f"{image} 0x0 {COPY_BYTES:#x}\n{image} {COPY_BYTES:#x} {COPY_BYTES:#x}\n")


def set_variables(configuration: Path, script: str, *options: str) -> None:
    """Change variables, `name=value` in each line."""
    subprocess.run(
        [need("fw_setenv"), "-c", str(configuration), *options, "-s", "/dev/stdin"],
        input=script.encode(),
        check=True,
        capture_output=True,
    )


def variables_of(configuration: Path) -> dict[str, str]:
    """Return all variables, as the tool prints them; an environment of which no copy is right is an error."""
    argv = [need("fw_printenv"), "-c", str(configuration), "-f", "/dev/null/none"]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def start_with_environment(configuration: Path, *, run: RunsPrograms = run_program) -> str:
    """Choose and count as deploy/u-boot/boot.cmd does, and return the slot that was started.

    An environment of which no copy is right is not there for U-Boot: it takes the one it was built with.
    """
    tool: list[str | Path] = ["-c", configuration, "-f", "/dev/null/none"]
    try:
        printed = run(["fw_printenv", *tool]).stdout.decode()
    except ProgramFailedError:
        printed = ""
    found = dict(line.split("=", 1) for line in printed.splitlines())
    prefix = "OVERHAUL_"
    ours = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    variables = parse_variables(ours, _SLOTS)
    counted = after_boot(variables)
    if counted != variables:
        wanted = render_variables(counted)
        script = "".join(f"{prefix}{name}={value}\n" for name, value in wanted.items())
        run(["fw_setenv", *tool, "-s", "/dev/stdin"], input_bytes=script.encode())
    return chosen_slot(variables)
