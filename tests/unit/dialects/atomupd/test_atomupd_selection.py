"""Selection by branches and numbered checkpoints: each situation that the servers before are known to decide."""

from dataclasses import dataclass, field
from itertools import count

import pytest

from overhaul.dialects.atomupd.catalogue import Entry, UnusablePoolError, assemble
from overhaul.dialects.atomupd.manifest import Image, image_of_fields
from overhaul.dialects.atomupd.selection import Kind, Selection
from overhaul.dialects.atomupd.server_configuration import Support


@dataclass
class _Fleet:
    """A pool whose images are named by a word; each is one day newer than the one before."""

    considered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    replacements: dict[str, str] = field(default_factory=dict)
    strict_pool: bool = True
    strict_compatibility: bool = False
    images: dict[str, Image] = field(default_factory=dict)
    _days: "count[int]" = field(default_factory=lambda: count(20240101))

    def put(self, name: str, branch: str = "stable", **fields: object) -> Image:
        image = _image(branch=branch, **{"buildid": str(next(self._days)), **fields})
        self.images[name] = image
        return image

    def ask(
        self, image: Image | str, branch: str = "stable", kind: Kind = Kind.STANDARD
    ) -> tuple[list[str], str | None]:
        """Return the names of what is offered, and the variant that stands in."""
        entries = [Entry(one, "" if one.shadow_checkpoint else f"{name}.raucb") for name, one in self.images.items()]
        support = Support(
            products=("steamos",),
            releases=("holo",),
            variants=("steamdeck", "old"),
            archs=("amd64",),
            branches=("stable", "rc", "beta", "main"),
            unstable=True,
            replacements=self.replacements,
            considered=self.considered,
            strict_pool=self.strict_pool,
            strict_compatibility=self.strict_compatibility,
        )
        asking = self.images[image] if isinstance(image, str) else image
        update = Selection(assemble(entries, support)).answer(asking, branch=branch, kind=kind)
        if update.minor is None:
            return [], None
        names = [candidate.update_path.removesuffix(".raucb") for candidate in update.minor.candidates]
        return names, update.minor.replacement_eol_variant or None

    def offered(self, image: Image | str, branch: str = "stable", kind: Kind = Kind.STANDARD) -> list[str]:
        """Return the names of what is offered."""
        return self.ask(image, branch, kind)[0]


def _image(**fields: object) -> Image:
    common = {"product": "steamos", "release": "holo", "variant": "steamdeck", "arch": "amd64", "version": "3.7.0"}
    return image_of_fields({**common, "buildid": "20230101", "branch": "stable", **fields})


def test_intermediate_images_are_jumped_over() -> None:
    fleet = _Fleet()
    for name in ("a", "b", "c"):
        fleet.put(name)

    assert fleet.offered("a") == ["c"]
    assert fleet.offered("c") == []


def test_a_checkpoint_stands_before_what_requires_it() -> None:
    fleet = _Fleet()
    fleet.put("a")
    fleet.put("b", introduces_checkpoint=1)
    fleet.put("c", requires_checkpoint=1)
    elsewhere = _image(branch="main", requires_checkpoint=1)

    assert fleet.offered("a") == ["b", "c"]
    assert fleet.offered("b") == ["c"]
    assert fleet.offered(elsewhere) == ["c"]


def _apart() -> _Fleet:
    fleet = _Fleet()
    fleet.put("a")
    fleet.put("p", "beta", introduces_checkpoint=1)
    fleet.put("x", introduces_checkpoint=2)
    fleet.put("q", "beta", introduces_checkpoint=2, requires_checkpoint=1)
    fleet.put("y", requires_checkpoint=2)
    return fleet


def test_a_level_without_a_way_on_gets_nothing() -> None:
    assert _apart().offered("p", "stable") == []


def test_the_branch_alone_is_tried_when_all_together_lead_nowhere() -> None:
    fleet = _apart()
    fleet.considered = {"beta": ("stable",)}

    assert fleet.offered("p", "beta") == ["q"]


def test_a_retired_checkpoint_is_replaced_by_another_of_its_number() -> None:
    fleet = _Fleet()
    retired = fleet.put("retired", introduces_checkpoint=1, skip=True)
    without = fleet.offered(retired)
    fleet.put("again", introduces_checkpoint=1)
    fleet.put("c", requires_checkpoint=1)

    assert without == []
    assert fleet.offered(retired) == ["c"]


def test_a_shadow_checkpoint_bridges_levels_and_is_never_offered() -> None:
    fleet = _Fleet()
    fleet.put("shadow", introduces_checkpoint=3, requires_checkpoint=1, shadow_checkpoint=True)
    fleet.put("newest", requires_checkpoint=3)

    assert fleet.offered(_image(requires_checkpoint=1)) == ["newest"]


def test_a_shadow_checkpoint_at_the_end_is_no_target() -> None:
    fleet = _Fleet()
    fleet.put("real")
    fleet.put("shadow", introduces_checkpoint=1, shadow_checkpoint=True)

    assert fleet.offered(_image()) == ["real"]


def test_a_level_never_falls() -> None:
    fleet = _Fleet()
    fleet.put("newest", requires_checkpoint=1)

    assert fleet.offered(_image(branch="beta", requires_checkpoint=3)) == []


def test_a_newest_image_that_is_a_checkpoint_comes_last() -> None:
    fleet = _Fleet()
    fleet.put("one", introduces_checkpoint=1)
    fleet.put("two", introduces_checkpoint=2, requires_checkpoint=1)

    assert fleet.offered(_image()) == ["one", "two"]


def test_a_device_on_a_withdrawn_image_goes_back() -> None:
    fleet = _Fleet()
    fleet.put("good")
    fleet.put("bad", skip=True)

    assert fleet.offered("bad") == ["good"]


def test_changing_to_a_more_stable_branch_may_go_back() -> None:
    fleet = _Fleet(considered={"beta": ("stable",)})
    fleet.put("stable")
    fleet.put("beta", "beta")

    assert fleet.offered("beta", "stable") == ["stable"]


def test_a_newer_image_of_a_more_stable_branch_is_offered() -> None:
    fleet = _Fleet(considered={"beta": ("stable",)})
    fleet.put("beta", "beta")
    fleet.put("stable")

    assert fleet.offered("beta", "beta") == ["stable"]


def test_snapshots_of_a_more_stable_branch_are_not_considered() -> None:
    fleet = _Fleet(considered={"beta": ("stable",)})
    fleet.put("beta", "beta")
    fleet.put("snapshot", version="snapshot")

    assert fleet.offered(_image(branch="beta"), "beta") == ["beta"]


def test_a_snapshot_device_that_changes_branch_is_always_moved() -> None:
    fleet = _Fleet(considered={"beta": ("stable",)})
    fleet.put("beta", "beta")

    assert fleet.offered(_image(version="snapshot", buildid="20990101"), "beta") == ["beta"]
    assert fleet.offered(_image(version="9.9", buildid="20990101"), "beta") == []


@pytest.mark.parametrize(("own", "asked"), [("main", "beta"), ("beta", "main")])
def test_branches_without_an_order_between_them_are_forced_either_way(own: str, asked: str) -> None:
    fleet = _Fleet()
    fleet.put("older", asked)
    fleet.put("newer", own)

    assert fleet.offered("newer", asked) == ["older"]


def test_a_branch_that_lags_behind_gets_the_more_stable_image() -> None:
    fleet = _Fleet(considered={"rc": ("stable",)})
    fleet.put("rc", "rc")
    fleet.put("stable")

    assert fleet.offered("rc", "rc") == ["stable"]


def test_the_last_but_one_of_one_image_is_none() -> None:
    fleet = _Fleet()
    fleet.put("only")

    assert fleet.offered(_image(), kind=Kind.PENULTIMATE) == []


def test_the_last_but_one_is_reached_through_checkpoints() -> None:
    fleet = _Fleet()
    fleet.put("a", introduces_checkpoint=1)
    fleet.put("b", requires_checkpoint=1)
    fleet.put("c", requires_checkpoint=1)

    assert fleet.offered(_image(), kind=Kind.PENULTIMATE) == ["a", "b"]


@pytest.mark.parametrize(("kind", "offered"), [(Kind.FALLBACK, ["new"]), (Kind.PENULTIMATE, ["old"])])
def test_fallback_and_last_but_one_do_not_ask_what_is_newer(kind: Kind, offered: list[str]) -> None:
    fleet = _Fleet()
    fleet.put("old")
    fleet.put("new")

    assert fleet.offered("new", kind=kind) == offered


def test_a_device_that_runs_the_newest_of_another_branch_is_not_sent_in_a_circle() -> None:
    fleet = _Fleet()
    same = fleet.put("same")

    assert fleet.offered(_image(branch="beta", buildid=str(same.build_id))) == []


@pytest.mark.parametrize(("kind", "offered"), [(Kind.STANDARD, ["new"]), (Kind.PENULTIMATE, ["old"])])
def test_a_variant_at_its_end_is_led_to_its_replacement(kind: Kind, offered: list[str]) -> None:
    fleet = _Fleet(replacements={"old": "steamdeck"})
    fleet.put("old")
    fleet.put("new")
    device = _image(variant="old", version="9.9", buildid="20990101")

    assert fleet.ask(device, kind=kind) == (offered, "steamdeck")


@pytest.mark.parametrize(
    ("strict_compatibility", "offered"), [(True, []), (False, ["fifth"])], ids=["as before", "mended"]
)
def test_a_fourth_number_counts_unless_compatibility_is_strict(
    *, strict_compatibility: bool, offered: list[str]
) -> None:
    fleet = _Fleet(strict_compatibility=strict_compatibility)
    fleet.put("fourth", version="3.7.1.2")
    fleet.put("fifth", version="3.7.1.3")

    assert fleet.offered("fourth") == offered


def test_an_empty_branch_is_an_error_only_for_strict_pools() -> None:
    fleet = _Fleet()
    device = fleet.put("a")

    with pytest.raises(UnusablePoolError, match="beta"):
        fleet.offered(device, "beta", Kind.FALLBACK)

    fleet.strict_pool = False
    assert fleet.offered(device, "beta", Kind.FALLBACK) == []
