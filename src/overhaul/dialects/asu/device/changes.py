"""What an upgrade would change, as sentences. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from overhaul.dialects.asu.device.facts import SystemFacts
from overhaul.dialects.asu.device.service import Newest


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The difference between what runs and what would."""

    from_version: str
    to_version: str
    is_newer: bool
    #: Package -> (old version, new version).
    upgraded: Mapping[str, tuple[str, str]]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    #: Old name -> new name.
    renamed: Mapping[str, str]

    @property
    def is_any(self) -> bool:
        """Whether there is anything to do."""
        return self.is_newer or bool(self.upgraded or self.added or self.removed or self.renamed)


def changes_between(facts: SystemFacts, newest: Newest) -> Changes:
    """Return what `newest` would change on the system that `facts` describe."""
    wanted, installed = set(newest.packages), set(facts.packages)
    renamed = {old: new for old, new in newest.replaced.items() if new is not None and old in installed}
    return Changes(
        from_version=_named(facts.version, facts.revision),
        to_version=_named(newest.version, newest.revision),
        is_newer=newest.is_newer,
        upgraded={
            name: (facts.packages[name], newest.versions[name])
            for name in sorted(wanted & installed)
            if name in newest.versions and newest.versions[name] != facts.packages[name]
        },
        added=tuple(sorted(wanted - installed - set(renamed.values()))),
        removed=tuple(sorted(installed - wanted - set(renamed))),
        renamed=renamed,
    )


def described(changes: Changes) -> list[str]:
    """Return the changes as lines for people."""
    if not changes.is_any:
        return [f"{changes.from_version} is up to date."]
    lines = [
        f"{changes.from_version} -> {changes.to_version}"
        if changes.from_version != changes.to_version
        else f"{changes.from_version}, with newer packages"
    ]
    width = max((len(name) for name in changes.upgraded), default=0)
    lines += [f"  upgrade  {name:<{width}}  {old} -> {new}" for name, (old, new) in changes.upgraded.items()]
    lines += [f"  replace  {old} by {new}" for old, new in changes.renamed.items()]
    lines += [f"  add      {name}" for name in changes.added]
    lines += [f"  remove   {name}" for name in changes.removed]
    return lines


def _named(version: str, revision: str) -> str:
    return f"{version} ({revision})" if revision else version
