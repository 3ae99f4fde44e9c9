"""What interruptions cost: updates whose every connection is cut and whose agent is killed, until so many happened.

    python -m benchmarks.resume [--interruptions 1000] [--size-mib 32] [--seed 1] [--newer]

Each round updates a copy of one device from a real server. Every connection is cut after up to --cut-kib of body, and
each run of the agent is killed after up to --kill-kib or before one of its durable operations. It prints the bytes of
an undisturbed update (ideal), those that were really sent, and what an interruption and a kill cost on average and at
most; with --newer a newer release is published in the middle of each round, at a kill drawn by chance, and what was
sent from then on is compared with what that release takes a device that never began with the other.

The segments have the size that publishers make. The kills and cuts are those of `tests/interruptions.py`.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from tests.asgi import running
from tests.fleet import RealDevice, RealRepository
from tests.hostile_network import Network, honest, network
from tests.interruptions import Tally, interrupted, packed_image, undisturbed_bytes

from overhaul.content.bydelta import IN_FLIGHT_BYTES
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interruptions", type=int, default=1000)
    parser.add_argument("--size-mib", type=int, default=32)
    parser.add_argument("--cut-kib", type=int, default=512)
    parser.add_argument("--kill-kib", type=int, default=2048)
    parser.add_argument("--kill-steps", type=int, default=400)
    parser.add_argument("--kills-a-round", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--newer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        _measure(Path(directory), options)


def _measure(directory: Path, options: argparse.Namespace) -> None:
    size_kib = options.size_mib * 1024
    images = [packed_image(directory, version, size_kib=size_kib) for version in range(3)]
    repository = RealRepository(directory / "repository")
    repository.publish(images[0], "1.0")
    delta = repository.publish(images[1], "1.1").release.image.deltas[0]
    groups = ", ".join(f"{part.size:,}" for part in delta.rebuilds)
    print(f"delta {delta.file.size:,} bytes; groups packed again: {groups or 'none'}")
    settings = ServerSettings.of_repository(repository.directory)
    with running(create_app(settings)) as site, network(site.port, honest) as up:
        factory = RealDevice.make(
            directory / "factory",
            url=up.url,
            root=repository.root,
            image=images[0],
            version="1.0",
            slot_size=size_kib * 1024,
        )
        if options.newer:
            later = repository.copy(directory / "later")
            later.publish(images[2], "1.2")
            _with_a_newer_release(later, factory, images, up, options)
        else:
            _rounds(factory, images[1], up, options)


def _rounds(factory: RealDevice, image: Path, up: Network, options: argparse.Namespace) -> None:
    ideal = undisturbed_bytes(factory.copy(factory.directory.with_name("undisturbed")), up)
    chance = random.Random(options.seed)
    total, worst, rounds = Tally(), 0.0, 0
    began, cpu = time.monotonic(), _cpu_seconds()
    while total.interruptions < options.interruptions:
        device = factory.copy(factory.directory.with_name(f"device-{rounds}"))
        tally = _interrupted(device, up, options, chance)
        rounds += 1
        if device.slot("B").read_bytes() != image.read_bytes():
            raise SystemExit(f"round {rounds}: the slot does not hold the image")
        worst = max(worst, (tally.body_bytes - ideal) / max(1, tally.kills))
        total.body_bytes += tally.body_bytes
        total.kills += tally.kills
        total.cuts += tally.cuts
        sent, more = f"{total.body_bytes:,}", f"{total.body_bytes - rounds * ideal:,}"
        print(f"round {rounds}: {total.kills} kills, {total.cuts} cuts, sent {sent}, extra {more}", flush=True)
        for slot in ("A", "B"):
            os.truncate(device.slot(slot), 0)
    extra = total.body_bytes - rounds * ideal
    print(f"{rounds} rounds, {total.kills} kills, {total.cuts} cuts; window {IN_FLIGHT_BYTES:,} bytes")
    print(f"ideal {ideal:,} bytes a round, {rounds * ideal:,} in all; really sent {total.body_bytes:,}")
    print(
        f"extra {extra:,} bytes: {extra / total.interruptions:,.0f} an interruption, {extra / total.kills:,.0f} a kill"
    )
    print(f"the worst round cost {worst:,.0f} bytes a kill, {worst / IN_FLIGHT_BYTES:.2f} windows")
    print(f"{time.monotonic() - began:.0f} s wall, {_cpu_seconds() - cpu:.0f} s CPU")


def _with_a_newer_release(
    later: RealRepository,
    factory: RealDevice,
    images: list[Path],
    up: Network,
    options: argparse.Namespace,
) -> None:
    """Do rounds in each of which a repository that has one release more takes the place of the first one."""
    directory = factory.directory
    chance = random.Random(options.seed)
    began, cpu, first_port = time.monotonic(), _cpu_seconds(), up.site_port
    with running(create_app(ServerSettings.of_repository(later.directory))) as site:
        up.site_port = site.port
        ideal = undisturbed_bytes(factory.copy(directory.with_name("undisturbed")), up)
        print(f"the newer release alone: {ideal:,} bytes", flush=True)
        interruptions = kills = cuts = rounds = extra = 0
        while interruptions < options.interruptions:
            sent_before: list[int] = []
            moment = chance.randrange(1, 1 + max(1, options.kills_a_round // 4))

            def publish_meanwhile(killed: int, *, moment: int = moment, before: list[int] = sent_before) -> None:
                if killed == moment:
                    before.append(up.body_bytes)
                    up.site_port = site.port

            up.site_port = first_port
            device = factory.copy(directory.with_name(f"device-{rounds}"))
            tally = _interrupted(device, up, options, chance, at_kill=publish_meanwhile)
            end = up.body_bytes
            rounds += 1
            interruptions += tally.interruptions
            kills, cuts = kills + tally.kills, cuts + tally.cuts
            newest = images[2] if sent_before else images[1]
            if device.slot("B").read_bytes() != newest.read_bytes():
                raise SystemExit(f"round {rounds}: the slot does not hold the image")
            if sent_before:
                after, left = end - sent_before[0], tally.kills - moment
                extra += after - ideal
                told = f"{after:,} bytes after it with {left} kills, {after - ideal:+,} of the ideal"
            else:
                told = "done before the newer release came"
            print(f"round {rounds}: {tally.kills} kills, {tally.cuts} cuts; {told}", flush=True)
            for slot in ("A", "B"):
                os.truncate(device.slot(slot), 0)
    print(f"{rounds} rounds, {kills} kills, {cuts} cuts; window {IN_FLIGHT_BYTES:,} bytes")
    print(f"extra after the newer release came: {extra:,} bytes, {extra / max(1, interruptions):,.0f} an interruption")
    print(f"{time.monotonic() - began:.0f} s wall, {_cpu_seconds() - cpu:.0f} s CPU")


def _interrupted(
    device: RealDevice, up: Network, options: argparse.Namespace, chance: random.Random, **more: object
) -> Tally:
    return interrupted(
        device,
        up,
        cut_within_bytes=options.cut_kib * 1024,
        kill_within_bytes=options.kill_kib * 1024,
        kill_within_steps=options.kill_steps,
        chance=chance,
        kills_at_most=options.kills_a_round,
        **more,  # type: ignore[arg-type]  # whatever differs
    )


def _cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


if __name__ == "__main__":
    main()
