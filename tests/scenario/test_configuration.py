"""A device's own configuration across real updates, with nothing but the restart simulated.

The slot's /etc and the layer over it are put together as overlayfs does, by the kernel itself.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.fleet import PRODUCT, RealDevice, RealRepository, release_id
from tests.hostile import signed_files
from tests.loopback import LoopbackServer, serving
from tests.signed_tree import SignedFiles
from tests.tools import need

from overhaul.agent.checking import UnlistedConfigurationError
from overhaul.agent.configuring import LayerNotShownError, carry_again
from overhaul.agent.confirming import confirm
from overhaul.agent.going_back import roll_back
from overhaul.agent.kits import install_from_kit
from overhaul.agent.outcomes import Ready, Updated
from overhaul.agent.previewing import Previewed, UnknownReleaseError, preview
from overhaul.agent.updating import update
from overhaul.cli.device import command
from overhaul.content.configuration import read_configuration, write_configuration
from overhaul.install.configuration.merging import Fate
from overhaul.install.configuration.scanning import scan
from overhaul.install.health import UnhealthyError
from overhaul.install.settings import load_settings
from overhaul.policy.document import encode_policy, policy_target_path
from overhaul.progress import Silence
from overhaul.publishing.kit_choice import KitRequest
from overhaul.publishing.kits import export_kit
from overhaul.release.record import ConfigurationRef, Release, encode_release
from overhaul.repository.layout import ContentKind, content_ref_of
from overhaul.repository.packs import restore_image
from overhaul.transfer.fetching import WrongDigestError
from overhaul.transfer.kit import open_kit

PASSWD_1 = "root:x:0:0:root:/root:/bin/sh\nntp:x:100:100::/:/bin/false\n"
PASSWD_2 = PASSWD_1 + "chrony:x:101:101::/:/bin/false\n"
SSHD_1 = "Port 22\nPermitRootLogin no\nX11Forwarding no\nUsePAM yes\nSubsystem sftp internal\n"
SSHD_2 = SSHD_1.replace("Subsystem sftp internal", "Subsystem sftp /usr/lib/sftp")
DIALS_1 = "brightness = 5\n"
DIALS_2 = "brightness = 7\n"


def tree(directory: Path, files: dict[str, str]) -> Path:
    """Make a root file system with these files in /etc."""
    (directory / "usr").mkdir(parents=True)
    for name, text in files.items():
        place = directory / "etc" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o644)
    (directory / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    return directory


FIRST = {
    "passwd": PASSWD_1,
    "ssh/sshd_config": SSHD_1,
    "dials.conf": DIALS_1,
    "motd": "first\n",
    "untouched": "same\n",
    "going": "gone in the next\n",
    "mine-and-going": "shipped\n",
}
SECOND = {
    "passwd": PASSWD_2,
    "ssh/sshd_config": SSHD_2,
    "dials.conf": DIALS_2,
    "motd": "second\n",
    "untouched": "same\n",
    "coming": "new\n",
}


class Releases(RealRepository):
    """A repository whose records and images a test looks at."""

    def record(self, version: str) -> Release:
        identity = release_id(version)
        return next(one for one in self.opened.published().releases.values() if one.id == identity)

    def configuration(self, version: str) -> str:
        """Return the public path of what a release ships."""
        ref = self.record(version).configuration
        assert ref is not msgspec.UNSET
        return ref.file.path

    def image(self, version: str) -> bytes:
        place = self.directory.parent / f"restored-{version}"
        restore_image(self.opened.storage, self.record(version).image, place, progress=Silence())
        return place.read_bytes()


class Scene:
    """A repository with two releases, and a device that its owner has configured."""

    def __init__(self, directory: Path, server: LoopbackServer, *, tells: bool = True) -> None:
        self.directory = directory
        self.server = server
        self.repository = Releases(directory / "repository")
        server.root = self.repository.public
        self.publish("1.0", FIRST, tells=tells)
        self.publish("2.0", SECOND, tells=tells)
        self.etc = directory / "etc"
        shutil.copytree(directory / "1.0" / ("etc" if tells else "settings"), self.etc, symlinks=True)
        self.device = self._device()

    def publish(self, version: str, files: dict[str, str], *, tells: bool = True) -> None:
        source = tree(self.directory / version, files)
        if not tells:
            (source / "etc").rename(source / "settings")
        release = self.repository.publish(source, version).release
        assert (release.configuration is not msgspec.UNSET) is tells

    def run_in(self, slot: str, version: str) -> None:
        """Have the device use the configuration of the slot that it was started from."""
        shown = self.etc_of(slot, version)
        shutil.rmtree(self.etc)
        shown.rename(self.etc)

    def _device(self) -> RealDevice:
        image = self.directory / "factory.ext4"
        image.write_bytes(self.repository.image("1.0"))
        made = RealDevice.make(
            self.directory / "device",
            url=self.server.url,
            root=self.repository.root,
            image=image,
            version="1.0",
            slot_size=16 << 20,
        )
        text = made.configuration.read_text()
        made.configuration.write_text(text.replace('carry = "nothing"', f'carry = "merged"\netc = "{self.etc}"'))
        return made

    def set_here(self, name: str, text: str) -> None:
        (self.etc / name).write_text(text)

    def preview(self, wanted: str | None = None) -> Previewed:
        seen = preview(self.device.device, wanted)
        assert isinstance(seen, Previewed)
        return seen

    def update(self) -> None:
        """Install the newest release, and boot into it."""
        assert isinstance(update(self.device.device, progress=Silence()), Updated)
        assert self.device.boot.simulate_boot() == "B"

    def layer(self, slot: str) -> Path:
        return self.device.directory / "state/etc" / slot

    def etc_of(self, slot: str, version: str) -> Path:
        """Return a copy of /etc as the kernel shows it to the system in `slot`."""
        layer, shown = self.layer(slot), self.directory / f"shown-{slot}"
        layers = f"lowerdir={self.directory / version / 'etc'},upperdir={layer}/upper,workdir={layer}/work"
        script = 'mount -t overlay overlay -o "$1" "$2" && cp -a "$2/." "$3"'
        (place := self.directory / f"mount-{slot}").mkdir()
        shown.mkdir()
        subprocess.run([need("unshare"), "--mount", "sh", "-ec", script, "sh", layers, place, shown], check=True)
        return shown


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    need("mkfs.ext4")
    with serving() as server:
        scene = Scene(tmp_path, server)
        yield scene


def fates(seen: Previewed) -> dict[str, Fate]:
    return {file.path.removeprefix("/etc/"): file.fate for file in seen.files}


def configure(scene: Scene) -> None:
    """Do what owners do."""
    scene.set_here("passwd", PASSWD_1 + "alice:x:1000:1000::/home/alice:/bin/sh\n")
    scene.set_here("ssh/sshd_config", SSHD_1.replace("Port 22", "Port 2222"))
    scene.set_here("dials.conf", "brightness = 9\n")
    scene.set_here("mine-and-going", "mine\n")
    scene.set_here("hostname", "kitchen\n")
    (scene.etc / "untouched").chmod(0o600)


def test_a_preview_tells_what_stays_what_is_taken_and_what_conflicts(scene: Scene) -> None:
    configure(scene)

    seen = scene.preview()

    assert fates(seen) == {
        "coming": Fate.TAKEN,
        "dials.conf": Fate.CONFLICT,
        "going": Fate.TAKEN,
        "hostname": Fate.KEPT,
        "mine-and-going": Fate.CONFLICT,
        "motd": Fate.TAKEN,
        "passwd": Fate.MERGED,
        "ssh/sshd_config": Fate.MERGED,
        "untouched": Fate.KEPT,
    }
    shown = {file.path: file for file in seen.files}
    assert shown["/etc/ssh/sshd_config"].text == SSHD_2.replace("Port 22", "Port 2222")
    assert shown["/etc/passwd"].text == (
        PASSWD_1 + "alice:x:1000:1000::/home/alice:/bin/sh\nchrony:x:101:101::/:/bin/false\n"
    )
    assert shown["/etc/dials.conf"].text == "brightness = 9\n"
    assert shown["/etc/dials.conf"].beside == "/etc/dials.conf.new"
    assert "+brightness = 7" in shown["/etc/dials.conf"].difference
    assert shown["/etc/mine-and-going"].reason == "changed here, removed by the release"


def test_a_preview_fetches_neither_the_image_nor_contents_that_no_one_merges(scene: Scene) -> None:
    configure(scene)

    scene.preview()

    fetched = {seen.path for seen in scene.server.requests}
    assert not {path for path in fetched if "/packs/" in path or "/indexes/" in path or "/deltas/" in path}
    # The header, and the three files that both sides changed.
    assert len(scene.server.ranges(scene.repository.configuration("2.0"))) == 4


def test_the_new_system_has_what_the_preview_promised(scene: Scene) -> None:
    configure(scene)
    promised = {file.path.removeprefix("/etc/"): file.text for file in scene.preview().files if file.text is not None}

    scene.update()

    etc = scene.etc_of("B", "2.0")
    assert {name: (etc / name).read_text() for name in promised} == promised
    assert (etc / "dials.conf.new").read_text() == DIALS_2
    assert (etc / "motd").read_text() == "second\n"
    assert (etc / "hostname").read_text() == "kitchen\n"
    assert (etc / "coming").read_text() == "new\n"
    assert not (etc / "going").exists()
    assert (etc / "untouched").stat().st_mode & 0o777 == 0o600
    assert (etc / "localtime").readlink() == Path("/usr/share/zoneinfo/UTC")


def test_the_slot_holds_the_signed_image_whatever_was_carried_over(scene: Scene) -> None:
    configure(scene)

    scene.update()

    image = scene.repository.image("2.0")
    assert scene.device.slot("B").read_bytes()[: len(image)] == image


def test_going_back_brings_back_the_configuration_of_that_slot(scene: Scene) -> None:
    configure(scene)
    before = scan(scene.etc).nodes

    scene.update()

    # Slot A was written in the factory: it has no layer, and its own /etc was not touched.
    assert scan(scene.etc).nodes == before
    assert not scene.layer("A").exists()


def test_what_is_configured_before_going_back_is_not_carried_back(scene: Scene) -> None:
    configure(scene)
    scene.update()
    confirm(scene.device.device)
    scene.run_in("B", "2.0")
    scene.publish("3.0", SECOND)
    assert isinstance(update(scene.device.device, progress=Silence()), Updated)
    assert scene.device.boot.simulate_boot() == "A"
    confirm(scene.device.device)
    scene.run_in("A", "3.0")
    layer = scene.layer("B").readlink()
    scene.set_here("hostname", "only in 3.0\n")

    assert roll_back(scene.device.device).slot == "B"

    assert not carry_again(scene.device.device)
    assert scene.layer("B").readlink() == layer


def test_a_new_system_without_the_configuration_it_was_given_is_not_kept(scene: Scene) -> None:
    configure(scene)
    scene.update()
    started = replace(scene.device.device, shows_layer=lambda slot: slot != "B")

    with pytest.raises(UnhealthyError, match=r"configuration of this slot is not mounted over /etc"):
        confirm(started)

    assert scene.device.boot.simulate_boot() == "A"
    assert confirm(started).was_confirmed


def test_a_system_that_runs_without_its_configuration_does_not_carry_that_over(scene: Scene) -> None:
    configure(scene)
    before = scene.device.slot("B").read_bytes()
    started = replace(scene.device.device, shows_layer=lambda _slot: False)

    for ask in (lambda: preview(started, None), lambda: update(started, progress=Silence())):
        with pytest.raises(LayerNotShownError, match=r"Slot A .* not mounted over /etc"):
            ask()

    assert scene.device.slot("B").read_bytes() == before
    scene.update()
    assert (scene.etc_of("B", "2.0") / "hostname").read_text() == "kitchen\n"


def test_a_second_update_compares_with_what_the_running_release_shipped(scene: Scene) -> None:
    configure(scene)
    scene.update()
    confirm(scene.device.device)
    scene.run_in("B", "2.0")
    scene.publish("3.0", SECOND | {"motd": "third\n", "dials.conf": "brightness = 8\n"})
    (scene.repository.public / scene.repository.configuration("2.0")).unlink()

    seen = scene.preview()

    assert seen.running_is_known
    assert fates(seen)["motd"] is Fate.TAKEN
    assert fates(seen)["dials.conf"] is Fate.CONFLICT
    assert fates(seen)["passwd"] is Fate.KEPT
    assert update(scene.device.device, progress=Silence()).exit_code == 0
    assert scene.layer("A").is_symlink()
    assert (scene.layer("A") / "upper/dials.conf.new").read_text() == "brightness = 8\n"


def test_what_is_changed_while_the_restart_waits_comes_along(scene: Scene) -> None:
    configure(scene)
    assert isinstance(update(scene.device.device, progress=Silence()), Updated)
    first = scene.layer("B").readlink()
    scene.set_here("dials.conf", DIALS_1)
    scene.set_here("hostname", "attic\n")
    scene.server.root = None

    assert carry_again(scene.device.device)
    second = scene.layer("B").readlink()
    # Nothing changed since: nothing is written.
    assert carry_again(scene.device.device)

    assert scene.layer("B").readlink() == second != first
    assert scene.device.boot.simulate_boot() == "B"
    etc = scene.etc_of("B", "2.0")
    assert (etc / "hostname").read_text() == "attic\n"
    assert (etc / "dials.conf").read_text() == DIALS_2
    assert (etc / "ssh/sshd_config").read_text() == SSHD_2.replace("Port 22", "Port 2222")
    assert not carry_again(scene.device.device)


def test_an_update_that_is_found_waiting_is_configured_once_more(scene: Scene) -> None:
    assert isinstance(update(scene.device.device, progress=Silence()), Updated)
    scene.set_here("hostname", "attic\n")

    assert isinstance(update(scene.device.device, progress=Silence()), Ready)

    assert (scene.layer("B") / "upper/hostname").read_text() == "attic\n"


def test_a_kit_brings_what_carrying_over_needs(scene: Scene) -> None:
    configure(scene)
    kit = scene.directory / "kit"
    request = KitRequest(product=PRODUCT, channel="stable", sources=("1.0",))
    export_kit(scene.repository.opened, kit, request, progress=Silence())
    scene.server.root = None

    installed = install_from_kit(load_settings(scene.device.configuration), open_kit(kit), progress=Silence())

    assert isinstance(installed.answer, Updated)
    upper = scene.layer("B") / "upper"
    assert (upper / "ssh/sshd_config").read_text() == SSHD_2.replace("Port 22", "Port 2222")
    assert (upper / "dials.conf.new").read_text() == DIALS_2


def test_a_device_that_carries_nothing_is_told_what_it_loses(scene: Scene) -> None:
    configure(scene)
    text = scene.device.configuration.read_text()
    scene.device.configuration.write_text(text.replace('carry = "merged"', 'carry = "nothing"'))

    seen = scene.preview()

    assert not seen.carries
    assert {name for name, fate in fates(seen).items() if fate is Fate.LOST} == {
        "dials.conf", "hostname", "mine-and-going", "passwd", "ssh/sshd_config", "untouched",
    }  # fmt: skip
    scene.update()
    assert not scene.layer("B").exists()


def test_a_release_can_be_named_and_one_that_is_not_there_is_refused(scene: Scene) -> None:
    assert scene.preview("2.0/b2.0").release.version == "2.0"
    with pytest.raises(UnknownReleaseError, match=r"2\.0/b2\.0"):
        scene.preview("7.0")


def test_changed_bytes_of_what_a_release_ships_are_refused(scene: Scene) -> None:
    path = scene.repository.public / scene.repository.configuration("2.0")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)

    with pytest.raises(WrongDigestError):
        scene.preview()
    with pytest.raises(WrongDigestError):
        update(scene.device.device, progress=Silence())
    assert scene.device.device.states.load().target is None


def test_what_a_mirror_has_damaged_is_taken_from_the_next(scene: Scene) -> None:
    configure(scene)
    path = scene.repository.configuration("2.0")
    ref = scene.repository.record("2.0").configuration
    assert ref is not msgspec.UNSET
    data = bytearray((scene.repository.public / path).read_bytes())
    for place in range(ref.header_size, len(data)):
        data[place] ^= 1
    scene.server.files[path] = bytes(data)
    with serving() as second:
        second.root = scene.repository.public
        text = scene.device.configuration.read_text()
        urls = f'urls = ["{scene.server.url}"'
        assert urls in text
        scene.device.configuration.write_text(text.replace(urls, f'{urls}, "{second.url}"'))

        assert fates(scene.preview())["passwd"] is Fate.MERGED
        scene.update()

    assert "chrony" in (scene.layer("B") / "upper/passwd").read_text()


def _foreign_account(scene: Scene) -> ConfigurationRef:
    """Have the server offer what 2.0 ships, with an account of a thief in it; return what a record would say of it."""
    genuine = scene.repository.record("2.0").configuration
    assert genuine is not msgspec.UNSET
    data = (scene.repository.public / genuine.file.path).read_bytes()
    nodes = read_configuration(data[: genuine.header_size], decoded_size=genuine.decoded_size).nodes
    text = (PASSWD_2 + "thief::0:0::/:/bin/sh\n").encode()
    digest = hashlib.sha256(text).digest()
    node = msgspec.structs.replace(nodes[b"passwd"], size=len(text), sha256=digest)
    written = write_configuration({**nodes, b"passwd": node}, {digest: text})
    ref = content_ref_of(ContentKind.CONFIGURATION, written.data)
    scene.server.files[ref.path] = written.data
    return ConfigurationRef(
        file=ref,
        header_size=written.header_size,
        header_sha256=hashlib.sha256(written.data[: written.header_size]).hexdigest(),
        decoded_size=written.decoded_size,
    )


def _with_a_stolen_product_key(scene: Scene, record: Release) -> None:
    """Have the server offer a changed record, as a thief of the product's and the online keys can."""
    thief = SignedFiles(signed_files(scene.repository.public), scene.repository.opened.keyring)
    target = thief.add_bytes(record.id.target_path, encode_release(record))
    thief.relist((PRODUCT, thief.forge(PRODUCT, lambda signed: signed.targets.update({target.path: target}))))
    scene.server.files.update(thief.files)


def _without_digests_of_configuration(scene: Scene) -> None:
    """Sign the policy as a publisher did who knew no such digests."""
    repository = scene.repository.opened
    with repository.locked("an earlier Overhaul") as lock:
        change = repository.change(lock)
        policy = change.policy(product=PRODUCT, channel="stable")
        assert policy is not None
        entries = tuple(msgspec.structs.replace(entry, configuration_sha256=None) for entry in policy.entries)
        earlier = msgspec.structs.replace(policy, entries=entries, revision=policy.revision + 1)
        change.editor.put_target(policy_target_path(PRODUCT, "stable"), encode_policy(earlier))
        change.commit()


def test_the_product_key_alone_puts_nothing_into_the_configuration(scene: Scene) -> None:
    configure(scene)
    genuine = scene.repository.record("2.0")
    for told in (_foreign_account(scene), msgspec.UNSET):
        _with_a_stolen_product_key(scene, msgspec.structs.replace(genuine, configuration=told))

        with pytest.raises(UnlistedConfigurationError):
            scene.preview()
        with pytest.raises(UnlistedConfigurationError):
            update(scene.device.device, progress=Silence())
        assert scene.device.device.states.load().target is None


def test_what_no_policy_vouches_for_is_not_merged(scene: Scene) -> None:
    configure(scene)
    _without_digests_of_configuration(scene)
    foreign = _foreign_account(scene)
    _with_a_stolen_product_key(scene, msgspec.structs.replace(scene.repository.record("2.0"), configuration=foreign))

    assert not scene.preview().release_is_known
    scene.update()

    passwd = (scene.layer("B") / "upper/passwd").read_text()
    assert passwd == PASSWD_1 + "alice:x:1000:1000::/home/alice:/bin/sh\n"


def test_publishing_again_tells_what_an_older_release_did_not(scene: Scene) -> None:
    _without_digests_of_configuration(scene)
    told = scene.repository.record("2.0")
    repository = scene.repository.opened
    with repository.locked("an earlier Overhaul") as lock:
        change = repository.change(lock)
        silent = msgspec.structs.replace(told, configuration=msgspec.UNSET)
        change.editor.put_target(told.id.target_path, encode_release(silent))
        change.commit()
    assert not scene.preview().release_is_known

    assert scene.repository.publish(scene.directory / "2.0", "2.0").changed

    configure(scene)
    assert scene.repository.record("2.0") == told
    assert fates(scene.preview())["passwd"] is Fate.MERGED
    assert not scene.repository.publish(scene.directory / "2.0", "2.0").changed


def test_publishing_again_vouches_for_what_a_release_tells(scene: Scene) -> None:
    _without_digests_of_configuration(scene)

    scene.repository.publish(scene.directory / "2.0", "2.0")

    configure(scene)
    assert scene.preview().release_is_known
    assert fates(scene.preview())["passwd"] is Fate.MERGED


def test_a_release_that_does_not_tell_takes_what_was_changed_here(scene: Scene) -> None:
    configure(scene)
    scene.publish("3.0", SECOND, tells=False)

    seen = scene.preview()

    assert not seen.release_is_known
    assert set(fates(seen).values()) == {Fate.KEPT}
    scene.update()
    assert (scene.layer("B") / "upper/dials.conf").read_text() == "brightness = 9\n"


def test_where_nobody_tells_anything_what_is_to_be_kept_comes_along(tmp_path: Path) -> None:
    with serving() as server:
        scene = Scene(tmp_path, server, tells=False)
        configure(scene)

        seen = scene.preview()

        assert (seen.running_is_known, seen.release_is_known) == (False, False)
        assert fates(seen) == {"hostname": Fate.KEPT}
        scene.update()
        assert (scene.layer("B") / "upper/hostname").read_text() == "kitchen\n"
        # From then on what lies in the layer is known to be this device's own.
        confirm(scene.device.device)
        (scene.layer("B") / "upper/added").write_text("later\n")
        scene.set_here("added", "later\n")
        scene.publish("3.0", SECOND, tells=False)
        assert fates(scene.preview()) == {"hostname": Fate.KEPT, "added": Fate.KEPT}
        assert isinstance(update(scene.device.device, progress=Silence()), Updated)
        assert (scene.layer("A") / "upper/added").read_text() == "later\n"


def test_the_command_shows_the_merged_file_and_answers_in_json(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    configure(scene)
    config = str(scene.device.configuration)

    assert command.main(["preview", "--config", config], standalone_mode=False) == 0
    told = capfd.readouterr().out
    assert "    | Port 2222" in told
    assert "lie beside it as /etc/dials.conf.new" in told
    assert command.main(["preview", "2.0", "--json", "--config", config], standalone_mode=False) == 0
    assert {file["fate"] for file in json.loads(capfd.readouterr().out)["files"]} == {
        "conflict", "kept", "merged", "taken",
    }  # fmt: skip
