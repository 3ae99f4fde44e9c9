"""The builder seam: a recipe and a place to work in go in, files and facts come out.

A builder runs foreign code (package scripts) only inside the sandbox, reports where it is, and ends every failure
that a person can understand as `BuildFailedError`. It never sees a key, the queue or the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from overhaul.builds.recipe import Recipe
from overhaul.builds.results import Phase


class Watcher(Protocol):
    """Whoever follows a build."""

    def phase(self, phase: Phase) -> None:
        """Note that the build is in `phase` now."""

    def log(self, text: str) -> None:
        """Add `text` to the live log."""

    def check(self) -> None:
        """Raise when the build must stop: cancelled, its lease lost, its time over."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a build happens."""

    #: An empty directory of its own, removed afterwards.
    directory: Path
    #: Name that the artefact will have.
    artefact: str
    watcher: Watcher


@dataclass(frozen=True, kw_only=True)
class MadeImage:
    """An image among the outputs."""

    name: str
    type: str
    filesystem: str


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a builder made; the files lie in `outputs`, and nothing about them is believed yet."""

    outputs: Path
    images: tuple[MadeImage, ...]
    manifest: Mapping[str, str]
    #: The manifest exactly as it was printed.
    manifest_text: bytes
    builder_digest: str
    document: Mapping[str, object] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    command_packages: tuple[str, ...] = ()
    stdout: str = ""
    stderr: str = ""


class Builder(Protocol):
    """Anything that can make an image of a recipe."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    def build(self, recipe: Recipe, place: Workplace) -> Built:
        """Make the image of `recipe` in `place`; raise `BuildFailedError` when there can be none."""
