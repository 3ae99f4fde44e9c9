"""Putting whole series of images into the queue: what `build-all` and `build-worker` do.

Both ask as a device of 2019 would, so that what they have built is what devices are answered with. They wait
whenever the queue has no more room for them; its turns go round, so a device that asks meanwhile waits for one build.
Stopped and run again they go on, because equal requests are one build.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from overhaul.builds.queue import BuildQueue, ClientLimitError, QueueFullError
from overhaul.builds.recipe import public_names
from overhaul.dialects.asu.catalogue import Catalogue
from overhaul.dialects.asu.seed_request import SeedRequest, parse_seed_request
from overhaul.dialects.asu.seed_resolving import find_asked, seed_recipe

_CLIENT = "asu build-all"
_PAUSE_S = 5.0

#: What an ImageBuilder runs on, beside what every image has.
WORKER_PACKAGES = (
    "bash", "bubblewrap", "bzip2", "coreutils", "diffutils", "file", "gawk", "getopt", "gnupg", "grep", "make",
    "patch", "perl", "python3", "tar", "unzip", "wget-ssl", "xz", "zstd",
)  # fmt: skip


def every_device(catalogue: Catalogue) -> Iterator[SeedRequest]:
    """Yield a request without packages for each device of each distribution's latest version."""
    for distribution in catalogue.distributions.values():
        system = catalogue.system(distribution.name, distribution.latest)
        if system is None:
            continue
        for target in catalogue.offered_targets(system):
            profiles = catalogue.profiles(system, target)
            for profile in () if profiles is None else profiles.profiles:
                yield _request(distribution.name, distribution.latest, target, profile)


def a_worker(catalogue: Catalogue, packages: Sequence[str]) -> SeedRequest:
    """Return a request for an x86/64 image of the latest OpenWrt with everything a worker needs."""
    latest = catalogue.distributions["openwrt"].latest if "openwrt" in catalogue.distributions else ""
    return _request("openwrt", latest, "x86/64", "generic", packages)


def submit(request: SeedRequest, catalogue: Catalogue, queue: BuildQueue, *, wait: Callable[[float], None]) -> bool:
    """Put `request` into the queue as soon as there is room; return whether a build was begun for it.

    Raises:
        RefusedRequestError: It cannot be built.
    """
    recipe = seed_recipe(request, find_asked(request, catalogue), catalogue)
    names = public_names(request.digest(), digits=12)
    while True:
        try:
            return queue.submit(recipe, names=names, client=_CLIENT, client_label="asu/1").is_new
        except (QueueFullError, ClientLimitError):
            wait(_PAUSE_S)


def _request(distro: str, version: str, target: str, board: str, packages: Sequence[str] = ()) -> SeedRequest:
    document = {"distro": distro, "version": version, "target": target, "board": board, "packages": list(packages)}
    return parse_seed_request(msgspec.json.encode(document))
