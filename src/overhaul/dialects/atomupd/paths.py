"""Where the answer for an image lies in the static tree, which is also what a device asks for.

```
holo/steamos/amd64/steamdeck/stable/3.7.1/20240115.1.json     the answer for one image and one branch
holo/steamos/amd64/steamdeck/stable.json                      for an image the server does not know
holo/steamos/amd64/steamdeck/stable.cp2.json                  the same, for a device at checkpoint 2
holo/steamos/amd64/steamdeck/stable.cp2.second_last.json      for who wants the last but one image
holo/steamos/amd64/steamdeck/remote-info.conf                 which variants and branches can be chosen
steamos/amd64/3.7.1/steamdeck-main/20240115.1.json            legacy images: without release and branch
```
"""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from overhaul.dialects.atomupd.manifest import Image, legacy_variant_of

REMOTE_INFO = "remote-info.conf"


class AnswerPaths(NamedTuple):
    """The files that may answer one image's question for one branch; relative, quoted as they stand on the disk."""

    standard: str
    fallback: str
    penultimate: str


@lru_cache(maxsize=4096)
def quoted(name: str) -> str:
    """Return a name as one part of a path; no name leads out of the tree or hides itself."""
    if name.startswith("."):
        name = "_" + name[1:]
    return quote(name.replace("/", "_"), safe="", errors="surrogatepass")


def answer_paths(image: Image, *, branch: str, variant: str | None = None) -> AnswerPaths:
    """Return where the answers for `image` and `branch` lie.

    `variant` asks for another variant than the image's own; legacy images take it as it is written, in place of what
    `branch` makes of it.
    """
    if image.legacy_variant:
        name = quoted(variant if variant is not None else legacy_variant_of(branch))
        base = directory = f"{remote_info_directory(image)}/{name}"
    else:
        base = f"{_directory(image.release, image.product, image.arch, variant or image.variant)}/{quoted(branch)}"
        directory = f"{base}/{image.version.text}"
    level = f".cp{image.level}" if image.level > 0 else ""
    return AnswerPaths(
        standard=f"{directory}/{image.build_id}.json",
        fallback=f"{base}{level}.json",
        penultimate=f"{base}{level}.second_last.json",
    )


def remote_info_directory(image: Image, *, variant: str | None = None) -> str:
    """Return the directory of an image's `remote-info.conf`."""
    if image.legacy_variant:
        return f"{quoted(image.product)}/{quoted(image.arch)}/{quoted(image.version.text)}"
    return _directory(image.release, image.product, image.arch, variant or image.variant)


@lru_cache(maxsize=1024)
def _directory(release: str, product: str, arch: str, variant: str) -> str:
    return f"{quoted(release)}/{quoted(product)}/{quoted(arch)}/{quoted(variant)}"
