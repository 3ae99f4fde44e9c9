"""A real repository and real devices that update from it over loopback: nothing here is a stand-in but the reboot.

The publisher, the trust client, the assembler and the agent are those of the product, wired as the product wires
them. A device is a directory with files as slots and the file boot backend, whose `simulate_boot` is the boot loader.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from overhaul.agent.ports import Device
from overhaul.agent.wiring import open_device
from overhaul.install.fileboot import FileBoot
from overhaul.install.settings import load_settings
from overhaul.install.template import Answers, render_template
from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.publish import Published, PublishRequest, publish
from overhaul.release.record import ReleaseId

PRODUCT = "weather"


def release_id(version: str) -> ReleaseId:
    """Return the release of the test product with this version."""
    return ReleaseId(product=PRODUCT, variant="lite", arch="amd64", version=version, build_id=f"b{version}")


def small_image(path: Path, version: str, *, size: int = 1 << 20) -> Path:
    """Write an image of `size` bytes that shares most of its bytes with every other version's."""
    data = bytearray(random.Random("shared").randbytes(size))
    changed = random.Random(version).randbytes(size // 8)
    data[size // 2 : size // 2 + len(changed)] = changed
    data[size // 4 : size // 4 + 65536] = bytes(65536)
    path.write_bytes(data)
    return path


class RealRepository:
    """A repository below `directory`, with demo keys beside it; made unless it is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.exists():
            create_repository(directory, products=(PRODUCT,), demo_keys=True)
        self.opened: Repository = open_repository(directory)

    def copy(self, directory: Path) -> "RealRepository":
        """Return a twin with the same keys, below another directory."""
        shutil.copytree(self.directory, directory)
        shutil.copytree(self.opened.keys_directory, directory.with_name(f"{directory.name}-keys"))
        return RealRepository(directory)

    @property
    def public(self) -> Path:
        """The document root."""
        return self.directory / "store/public"

    @property
    def root(self) -> Path:
        """What devices begin to trust with."""
        return self.directory / "root.json"

    def publish(self, image: Path, version: str, *, channel: str = "stable") -> Published:
        """Publish `image` as a version."""
        request = PublishRequest(source=image, release=release_id(version), channel=channel)
        return publish(self.opened, request, workers=1, progress=Silence())


@dataclass(frozen=True)
class RealDevice:
    """A device in `directory`."""

    directory: Path

    @classmethod
    def make(
        cls, directory: Path, *, url: str, root: Path, image: Path, version: str, slot_size: int, more: str = ""
    ) -> "RealDevice":
        """Return a device whose slot A was written in the factory; slot B holds rubbish."""
        directory.mkdir(parents=True)
        made = cls(directory)
        made.slot("A").write_bytes(image.read_bytes().ljust(slot_size, b"\0"))
        made.slot("B").write_bytes(random.Random("rubbish").randbytes(slot_size))
        shutil.copy(root, directory / "root.json")
        answers = Answers(
            product=PRODUCT,
            variant="lite",
            arch="amd64",
            channel="stable",
            version=version,
            build_id=f"b{version}",
            urls=[url],
            allow_http=True,
            slots={"A": "slot-A.img", "B": "slot-B.img"},
            root_metadata="root.json",
            state_directory="state",
            boot_backend="file",
            boot_file="boot.json",
            report_url="",
        )
        made.configuration.write_text(render_template(answers).replace("commands = []", f"commands = [{more}]"))
        made.boot.simulate_boot()
        return made

    def copy(self, directory: Path) -> "RealDevice":
        """Return a sister in another directory."""
        shutil.copytree(self.directory, directory)
        return RealDevice(directory)

    @property
    def configuration(self) -> Path:
        """The device.toml."""
        return self.directory / "device.toml"

    @property
    def boot(self) -> FileBoot:
        """The boot loader."""
        return FileBoot(self.directory / "boot.json", ("A", "B"))

    @property
    def device(self) -> Device:
        """The device as a program that has just been started sees it."""
        return open_device(load_settings(self.configuration))

    def slot(self, name: str) -> Path:
        """Return the file of a slot."""
        return self.directory / f"slot-{name}.img"

    def booted_bytes(self, size: int) -> bytes:
        """Return the first bytes of the slot that runs."""
        with self.slot(self.boot.booted()).open("rb") as stream:
            return stream.read(size)
