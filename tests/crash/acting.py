"""The device whose power is cut: files as slots, a repository beside it, and the real agent.

Run as a program it does one thing that a device does, so that it can be recorded:

    python -m tests.crash.acting LOADER TOP PUBLIC ACTION...
"""

import dataclasses
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from overhaul.agent.checking import check
from overhaul.agent.confirming import UnverifiedSlotError, confirm
from overhaul.agent.going_back import roll_back
from overhaul.agent.ports import Device
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.install.health import Answer, UnhealthyError
from overhaul.install.settings import load_settings
from overhaul.install.template import Answers, render_template
from overhaul.progress import Silence
from overhaul.transfer.kit import DirectoryKit
from tests.crash.broken import BROKEN
from tests.crash.loaders import LOADERS, Loader, slot_paths

SIZE = 384 * 1024


def write_image(path: Path, version: str) -> Path:
    """Write an image that differs in many places from those of other versions."""
    data = bytearray(random.Random("shared").randbytes(SIZE))
    for begin in range(8192, SIZE, 49152):
        data[begin : begin + 2048] = random.Random(f"{version} {begin}").randbytes(2048)
    data[65536 : 65536 + 32768] = bytes(32768)
    path.write_bytes(data)
    return path


def make_device(top: Path, loader: Loader, *, root: Path, image: Path) -> None:
    """Make a device that leaves the factory with `image` in slot A, rubbish in slot B, and no state."""
    top.mkdir(parents=True)
    shutil.copyfile(root, top / "root.json")
    (top / "slot-A.img").write_bytes(image.read_bytes())
    (top / "slot-B.img").write_bytes(b"rubbish!" * (SIZE // 8))
    answers = Answers(
        product="weather",
        variant="lite",
        arch="amd64",
        channel="stable",
        version="1.0",
        build_id="b1.0",
        urls=["https://updates.test"],
        allow_http=False,
        slots={slot: path.name for slot, path in slot_paths(top).items()},
        root_metadata="root.json",
        state_directory="state",
        boot_backend="file",
        boot_file="unused",
        report_url="",
    )
    (top / "device.toml").write_text(render_template(answers))
    loader.prepare(top)


def open_agent(top: Path, public: Path, loader: Loader, *, is_sick: Callable[[], bool]) -> Device:
    """Return the real agent of the device in `top`; health is told and not run, and the network is a directory."""

    def run(command: Sequence[str], *, timeout_s: float) -> Answer:
        return Answer(exit_code=3 if is_sick() else 0, output=command[-1])

    settings = load_settings(top / "device.toml")
    settings = msgspec.structs.replace(settings, health=msgspec.structs.replace(settings.health, commands=("told",)))
    opened = open_device(settings, kit=DirectoryKit(public))
    return loader.agent(dataclasses.replace(opened, run=run), top)


def act(device: Device, action: str) -> None:
    """Do one thing."""
    try:
        _ACTIONS[action](device)
    except (UnhealthyError, UnverifiedSlotError):
        # The answers of a device that is about to go back.
        return


_ACTIONS: Mapping[str, Callable[[Device], object]] = {
    "check": check,
    "update": lambda device: update(device, progress=Silence()),
    "confirm": confirm,
    "roll-back": roll_back,
}


def loader_named(name: str) -> Loader:
    """Return a loader, which may be one of the broken ones."""
    return {**LOADERS, **BROKEN}[name]


def main(loader_name: str, top: str, public: str, *actions: str) -> None:
    """Open the device once for each action, as a program does that is started for it."""
    directory, loader = Path(top), loader_named(loader_name)
    sick = "sick" in actions
    for action in actions:
        if action == "start":
            loader.start(directory)
        elif action != "sick":
            act(open_agent(directory, Path(public), loader, is_sick=lambda: sick), action)


if __name__ == "__main__":
    main(*sys.argv[1:])
