"""Devices that share a release on their network: the real servers and agents, on loopback."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from tests.fleet import RealDevice, RealRepository, release_id, small_image
from tests.loopback import LoopbackServer, serving
from tests.strangers import (
    Script,
    Stranger,
    babble,
    deny,
    flood,
    flood_head,
    hang,
    lie,
    redirect,
    trickle,
    vanish,
)
from tests.waiting import PATIENCE_S, until

from overhaul.agent.confirming import confirm
from overhaul.agent.outcomes import Updated
from overhaul.agent.sharing import asking
from overhaul.agent.sharing.running import SharingOffError, run_share, share_server
from overhaul.agent.sharing.serving import ShareServer
from overhaul.agent.updating import update
from overhaul.host.listening import listen
from overhaul.install.settings import SettingsError, load_settings
from overhaul.progress import Silence
from overhaul.transfer.neighbour import HttpNeighbour

SIZE = 1 << 20


class Scene:
    """A repository with two releases, and devices of one household."""

    def __init__(self, directory: Path, server: LoopbackServer) -> None:
        self.directory = directory
        self.server = server
        self.repository = RealRepository(directory / "repository")
        server.root = self.repository.public
        self.images = {version: small_image(directory / f"{version}.img", version) for version in ("1.0", "2.0")}
        self.repository.publish(self.images["1.0"], "1.0")

    def device(self, name: str, share: str = "") -> RealDevice:
        made = RealDevice.make(
            self.directory / name,
            url=self.server.url,
            root=self.repository.root,
            image=self.images["1.0"],
            version="1.0",
            slot_size=SIZE,
        )
        text = made.configuration.read_text()
        keys = share.partition(" =")[0]
        lines = [line for line in text.splitlines() if not keys or not line.startswith(f"{keys} =")]
        made.configuration.write_text("\n".join(lines).replace("[share]", f"[share]\n{share}"))
        return made

    def publish(self) -> None:
        """Publish the release that everybody wants, and forget what was asked for so far."""
        self.repository.publish(self.images["2.0"], "2.0")
        self.server.body_bytes = 0

    def update(self, device: RealDevice) -> Updated:
        """Bring a device to the new release, and say what it cost."""
        answer = update(device.device, progress=Silence())
        assert isinstance(answer, Updated)
        assert device.slot("B").read_bytes() == self.images["2.0"].read_bytes()
        return answer

    def content_asked_for(self) -> set[str]:
        """Return what the repository was asked for of indexes, packs and deltas."""
        return {seen.path for seen in self.server.requests if seen.path.startswith("content/")}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving() as server:
        yield Scene(tmp_path, server)


@contextmanager
def sharing(device: RealDevice, *, metered: bool = False, **share: object) -> Iterator[tuple[str, ShareServer]]:
    """Run the share server of a device, and yield its address."""
    server = share_server(load_settings(device.configuration), is_metered=lambda: metered)
    for name, value in share.items():
        setattr(server.allowance, name, value)
    listening = listen("127.0.0.1", 0)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def serve() -> None:
        task = asyncio.ensure_future(
            server.serve(listening, started=lambda: started.set_result((asyncio.get_running_loop(), task)))
        )
        with suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    loop, task = started.result(PATIENCE_S)
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        listening.close()


def asks(*addresses: str) -> str:
    return f"neighbours = {list(addresses)}".replace("'", '"')


def test_three_devices_take_one_release_from_the_repository_about_once(scene: Scene) -> None:
    first = scene.device("first")
    scene.publish()
    scene.update(first)
    one = scene.server.body_bytes
    # What gives is the system that runs now, and not the update that brought it.
    assert first.boot.simulate_boot() == "B"
    confirm(first.device)

    with sharing(first) as (address, server):
        others = [scene.update(scene.device(name, asks(address))) for name in ("second", "third")]
        # What is given is counted when it has gone.
        until(lambda: server.given_bytes, lambda given: given == sum(other.neighbour_bytes for other in others))

    image = next(one for one in scene.repository.opened.published().releases.values() if one.id == release_id("2.0"))
    more = scene.server.body_bytes - one
    assert more < one / 4
    assert all(other.neighbour_bytes > SIZE // 8 for other in others)
    assert image.image.index.path not in {seen.path for seen in scene.server.requests[-20:]}


def test_the_command_gives_until_it_is_told_to_end(scene: Scene) -> None:
    first = scene.device("first", 'listen = "127.0.0.1:0"')
    scene.publish()
    scene.update(first)

    command = [sys.executable, "-m", "overhaul", "device", "share", "--config", str(first.configuration)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().rstrip(".\n").split()
        answer = scene.update(scene.device("second", asks(f"{words[2]}:{words[4]}")))
        process.send_signal(signal.SIGTERM)
        told, _nothing = process.communicate(timeout=PATIENCE_S)

    assert answer.neighbour_bytes > SIZE // 8
    assert process.returncode == 0
    assert told.startswith("Gave ")


def test_sharing_makes_no_state_of_its_own(scene: Scene) -> None:
    device = scene.device("device")

    with sharing(device) as (_address, server):
        assert not server.shelf.has_image("0" * 64)

    assert not (device.directory / "state/state.json").exists()


def test_nobody_gives_and_nobody_is_asked_unless_the_owner_says_so(scene: Scene) -> None:
    device = scene.device("device")
    settings = load_settings(device.configuration)

    assert not settings.share.asks
    assert not settings.share.listen
    with pytest.raises(SharingOffError):
        run_share(settings, started=lambda _host, _port: None)
    scene.publish()
    assert scene.update(device).neighbour_bytes == 0


@pytest.mark.parametrize(
    ("share", "told"),
    [
        ('listen = "198.51.100.7:7373"', "private or link-local"),
        ('listen = "example.com:7373"', "private or link-local"),
        ('neighbours = ["8.8.8.8:80"]', "private or link-local"),
        ("max_bytes_per_s = 0", ">= 1"),
    ],
)
def test_addresses_that_strangers_reach_are_refused(scene: Scene, share: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(scene.device("device", share).configuration)


def test_images_built_for_one_device_are_not_shared(scene: Scene) -> None:
    device = scene.device("device", 'listen = "127.0.0.1:0"')
    text = device.configuration.read_text()
    device.configuration.write_text(text.replace("# accept_builds = false", "accept_builds = true"))

    with pytest.raises(SettingsError, match="accept_builds"):
        load_settings(device.configuration)


def test_what_was_changed_in_a_running_slot_stays_there(scene: Scene) -> None:
    first = scene.device("first")
    scene.publish()
    scene.update(first)
    secret = b"the owner's own bytes"
    with first.slot("B").open("r+b") as stream:
        stream.seek(SIZE // 2 + 1000)
        stream.write(secret)

    with sharing(first) as (address, _server):
        second = scene.device("second", asks(address))
        assert scene.update(second).neighbour_bytes > 0

    assert secret not in second.slot("B").read_bytes()


def test_a_metered_link_gives_nothing(scene: Scene) -> None:
    first = scene.device("first")
    scene.publish()
    scene.update(first)

    with sharing(first, metered=True) as (address, server):
        assert scene.update(scene.device("second", asks(address))).neighbour_bytes == 0

    assert server.given_bytes == 0


def test_a_day_that_is_used_up_gives_nothing_more_and_the_update_goes_on(scene: Scene) -> None:
    first = scene.device("first")
    scene.publish()
    scene.update(first)

    with sharing(first, max_bytes_per_day=100_000) as (address, server):
        assert scene.update(scene.device("second", asks(address))).neighbour_bytes <= 100_000

    assert server.given_bytes <= 100_000


@pytest.mark.parametrize(
    "script",
    [lie, hang, trickle, flood, flood_head, vanish, deny, redirect, babble],
    ids=lambda script: script.__name__,
)
@pytest.mark.parametrize("lacks", [b"/pieces/", b"-"], ids=["chunks", "pieces"])
def test_a_bad_neighbour_costs_time_and_nothing_else(
    scene: Scene, script: Script, lacks: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who says nothing or next to nothing is waited for; what all others answer is wrong however late it comes.
    patience_s = 5.0 if script in {hang, trickle} else PATIENCE_S
    monkeypatch.setattr(asking, "HttpNeighbour", partial(HttpNeighbour, patience_s=patience_s, min_bytes_per_s=1 << 30))
    with Stranger(script, lacks=lacks) as stranger:
        device = scene.device("device", asks(stranger.address))
        scene.publish()

        assert scene.update(device).neighbour_bytes == 0

    # Whoever failed once is not asked again; whoever only says no may be asked for each piece.
    asked = [
        path
        for request in stranger.requests
        if lacks not in (path := request.split(b" ")[1]) and (b"-" in path or b"/pieces/" in path)
    ]
    assert asked
    assert script in {deny, redirect} or len(asked) == 1


def test_a_good_neighbour_makes_up_for_a_bad_one(scene: Scene) -> None:
    first = scene.device("first")
    scene.publish()
    scene.update(first)
    one = scene.server.body_bytes

    with sharing(first) as (address, _server), Stranger(lie) as stranger:
        answer = scene.update(scene.device("second", asks(stranger.address, address)))

    assert answer.neighbour_bytes > SIZE // 8
    assert scene.server.body_bytes - one < one / 4


def test_nothing_but_content_is_ever_asked_of_a_neighbour(scene: Scene) -> None:
    with Stranger(deny) as stranger:
        device = scene.device("device", asks(stranger.address))
        scene.publish()
        scene.update(device)

    paths = {request.split(b" ")[1].split(b"/")[3] for request in stranger.requests}
    assert paths == {b"images", b"pieces"}
    assert any(seen.path == "metadata/timestamp.json" for seen in scene.server.requests)
