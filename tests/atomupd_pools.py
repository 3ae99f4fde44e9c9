"""Image pools on disk as tests and benchmarks need them; bundles are empty files, stores empty directories."""

import json
from collections.abc import Mapping
from pathlib import Path


def put_image(  # one keyword for each thing a test may want otherwise
    pool: Path,
    version: str,
    build_id: str,
    *,
    product: str = "steamos",
    release: str = "holo",
    variant: str = "steamdeck",
    arch: str = "amd64",
    branch: str | None = "stable",
    name: str | None = None,
    bundle: bool = True,
    store: bool = True,
    **fields: object,
) -> str:
    """Put an image into `pool`; return its `update_path`."""
    manifest: dict[str, object] = {
        "product": product,
        "release": release,
        "variant": variant,
        "arch": arch,
        "version": version,
        "buildid": build_id,
    }
    if branch is not None:
        manifest["branch"] = branch
    manifest.update(fields)
    directory = pool / product / release / version.replace("/", "_") / arch
    directory.mkdir(parents=True, exist_ok=True)
    stem = name or f"{product}-{release}-{build_id}-{version.replace('/', '_')}-{arch}-{variant}-{branch}"
    if bundle:
        (directory / f"{stem}.raucb").touch()
    if store:
        (directory / f"{stem}.castr").mkdir(exist_ok=True)
    (directory / f"{stem}.manifest.json").write_text(json.dumps(manifest))
    return str((directory / f"{stem}.raucb").relative_to(pool))


def write_configuration(path: Path, pool: Path, *sections: str, **images: str) -> Path:
    """Write a server's file for `pool`; options with an empty value are left out, `sections` are added as text."""
    options: Mapping[str, str] = {
        "PoolDir": str(pool),
        "Unstable": "no",
        "Products": "steamos",
        "Releases": "holo",
        "Variants": "steamdeck",
        "Branches": "stable beta",
        "Archs": "amd64",
        **images,
    }
    lines = [
        "[Server]",
        "Host = 127.0.0.1",
        "Port = 0",
        "[Images]",
        *(f"{name} = {value}" for name, value in options.items() if value),
        *sections,
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def put_thousand(pool: Path, *, count: int = 1000, branches: tuple[str, ...] = ("stable", "rc", "beta")) -> None:
    """Put `count` images of consecutive days into `pool`, spread over the branches."""
    for number in range(count):
        date = f"20{20 + number // 336:02d}{1 + number // 28 % 12:02d}{1 + number % 28:02d}"
        put_image(pool, f"3.{number // 50}.{number % 50}", f"{date}.1", branch=branches[number % len(branches)])
