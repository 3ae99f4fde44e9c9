"""Whether a repository's history makes the next release dearer: the 1 000th publish beside the 10th.

    python -m benchmarks.many_releases [--releases 1000] [--window 5] [--support 100]

One repository takes release after release of a small image that changes a little each time. Around each tenth power
the CPU time of a publish (this process and its children, median of a window) is taken, and a device that was up to
date asks over HTTP what is new: the bytes and requests of that check, which every device of a fleet pays for every
publish, and those of the check after it, when nothing is new. Beside them stand the sizes of what was signed.

With --support the operator keeps house: now and then the support floor is raised to the release so many back, and the
repository is pruned; neither is part of the figures.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.asgi import running
from tests.fleet import PRODUCT, RealDevice, RealRepository, small_image

from benchmarks.measure import table
from overhaul.agent.checking import check
from overhaul.policy.document import Floor
from overhaul.publishing.policies import set_floor
from overhaul.publishing.upkeep import prune_repository
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings

_IMAGE_BYTES = 256 << 10
_HOUSE_KEPT_EVERY = 20


@dataclass(frozen=True)
class _Cost:
    """What one publish cost its publisher, and then each device that follows the channel."""

    release: int
    cpu_s: float
    wall_s: float
    check_bytes: int
    check_requests: int
    unchanged_bytes: int
    #: Role or document -> bytes of its newest version.
    sizes: dict[str, int]


def main() -> None:
    """Publish, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--window", type=int, default=5, help="publishes whose median is taken (%(default)s)")
    parser.add_argument("--support", type=int, default=0, help="releases that stay supported (all)")
    parser.add_argument("--scratch", type=Path, help="directory for the repository")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
        costs = list(_costs(Path(directory), releases=options.releases, window=options.window, support=options.support))
    print(_report(costs))
    print(f"median of {options.window} publishes; load {os.getloadavg()[0]:.1f}")


def _costs(directory: Path, *, releases: int, window: int, support: int) -> Iterator[_Cost]:
    repository = RealRepository(directory / "repository")
    first = small_image(directory / "first.img", "1.0.0", size=_IMAGE_BYTES)
    repository.publish(first, "1.0.0")
    marks = [mark for mark in (10, 100, 1000, 4000) if mark <= releases]
    with running(create_app(ServerSettings.of_repository(repository.directory))) as site:
        device = RealDevice.make(
            directory / "device",
            url=site.url,
            root=repository.root,
            image=first,
            version="1.0.0",
            slot_size=_IMAGE_BYTES,
        )
        near: list[_Cost] = []
        for number in range(2, releases + 1):
            if support and number > support and number % _HOUSE_KEPT_EVERY == 0:
                _keep_house(repository, oldest=number - support)
            mark = next((mark for mark in marks if mark - window < number <= mark), None)
            if mark is not None and not near:
                _checked(device)
            cpu_s, wall_s = _published(repository, directory, number)
            if mark is None:
                continue
            check_bytes, check_requests = _checked(device)
            unchanged_bytes, _requests = _checked(device)
            near.append(
                _Cost(
                    release=number,
                    cpu_s=cpu_s,
                    wall_s=wall_s,
                    check_bytes=check_bytes,
                    check_requests=check_requests,
                    unchanged_bytes=unchanged_bytes,
                    sizes=_sizes(repository.public),
                )
            )
            if number == mark:
                print(f"release {number}: {statistics.median(cost.cpu_s for cost in near):.3f} CPU s", flush=True)
                yield _middle(near)
                near = []


def _published(repository: RealRepository, directory: Path, number: int) -> tuple[float, float]:
    version = f"1.0.{number}"
    image = small_image(directory / "next.img", version, size=_IMAGE_BYTES)
    cpu_s, wall_s = _cpu_seconds(), time.perf_counter()
    repository.publish(image, version)
    return _cpu_seconds() - cpu_s, time.perf_counter() - wall_s


def _keep_house(repository: RealRepository, *, oldest: int) -> None:
    floor = Floor(variant="lite", arch="amd64", support=f"1.0.{oldest}")
    set_floor(repository.opened, floor, product=PRODUCT, channel="stable")
    prune_repository(repository.opened, grace_days=0)


def _checked(device: RealDevice) -> tuple[int, int]:
    opened = device.device
    check(opened)
    return opened.traffic.bytes_received, opened.traffic.requests


def _sizes(public: Path) -> dict[str, int]:
    newest: dict[str, tuple[int, int]] = {}
    for path in (public / "metadata").iterdir():
        version, dot, name = path.name.partition(".")
        if dot and version.isdecimal():
            role = name.removesuffix(".json")
            newest[role] = max(newest.get(role, (0, 0)), (int(version), path.stat().st_size))
    policies = list((public / "targets" / PRODUCT / "policy").glob("*stable.json"))
    policy = max(policies, key=lambda path: path.stat().st_mtime_ns)
    return {role: size for role, (_version, size) in newest.items()} | {"the policy": policy.stat().st_size}


def _middle(costs: list[_Cost]) -> _Cost:
    last = costs[-1]
    return _Cost(
        release=last.release,
        cpu_s=statistics.median(cost.cpu_s for cost in costs),
        wall_s=statistics.median(cost.wall_s for cost in costs),
        check_bytes=round(statistics.median(cost.check_bytes for cost in costs)),
        check_requests=last.check_requests,
        unchanged_bytes=round(statistics.median(cost.unchanged_bytes for cost in costs)),
        sizes=last.sizes,
    )


def _report(costs: list[_Cost]) -> str:
    roles = list(costs[-1].sizes)
    header = ["release", "CPU s", "wall s", "check, bytes", "requests", "unchanged, bytes", *roles]
    rows = [
        [
            str(cost.release),
            f"{cost.cpu_s:.3f}",
            f"{cost.wall_s:.3f}",
            f"{cost.check_bytes:,}",
            str(cost.check_requests),
            f"{cost.unchanged_bytes:,}",
            *(f"{cost.sizes.get(role, 0):,}" for role in roles),
        ]
        for cost in costs
    ]
    return table(header, rows)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main()
