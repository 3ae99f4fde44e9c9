"""The UEFI application's update killed at every durable step: the firmware finds the old one or the new one, whole."""

import hashlib
import itertools
from functools import partial
from pathlib import Path

from overhaul.dialects.ostree.device.uefiapp import UefiApp, update_app
from tests.crash.killing import run_killed_at


def _update(app: UefiApp, esp: Path) -> None:
    update_app(app, esp)


def test_a_kill_at_any_step_leaves_the_old_or_the_new_application(tmp_path: Path) -> None:
    new = tmp_path / "new.efi"
    new.write_bytes(b"new " * 500_000)
    app = UefiApp(path=new, name="bootx64.efi", digest=hashlib.sha256(new.read_bytes()).hexdigest())
    seen = set()
    for point in itertools.count():
        esp = tmp_path / f"esp{point}"
        started = esp / "EFI/BOOT/bootx64.efi"
        started.parent.mkdir(parents=True)
        started.write_bytes(b"old")
        passed = run_killed_at(partial(_update, app, esp), point)
        left = started.read_bytes()
        assert left in {b"old", new.read_bytes()}
        seen.add(left[:3])
        update_app(app, esp)
        names = {path.name: path.read_bytes()[:3] for path in started.parent.iterdir()}
        # A kill after the last rename leaves nothing behind, and one before it what the next run removes.
        assert names == {"bootx64.efi": b"new", "bootx64.efi.old": b"old"}
        if passed is not None:
            assert point >= 6
            break
    assert seen == {b"old", b"new"}
