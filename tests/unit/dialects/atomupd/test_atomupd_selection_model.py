"""Selection agrees with a slow model that was written apart from it, on any pool."""

import itertools
from functools import cmp_to_key

from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.dialects.atomupd.catalogue import Entry, assemble
from overhaul.dialects.atomupd.manifest import Image, image_of_fields
from overhaul.dialects.atomupd.selection import Kind, Selection
from overhaul.dialects.atomupd.server_configuration import Support

_BRANCHES = ("stable", "beta", "main")


def _lower(a: Image, b: Image) -> bool:
    """The order, once more and naively."""
    if "snapshot" in (a.version.text, b.version.text):
        return (a.release, a.build_id.date, a.build_id.counter) < (b.release, b.build_id.date, b.build_id.counter)
    if a.version.text != b.version.text:
        left, right = a.version.precedence, b.version.precedence
        return left is not None and right is not None and left < right
    return (a.release, a.build_id.date, a.build_id.counter) < (b.release, b.build_id.date, b.build_id.counter)


def _equal(a: Image, b: Image) -> bool:
    same_build = (a.release, a.build_id) == (b.release, b.build_id)
    return same_build and ("snapshot" in (a.version.text, b.version.text) or a.version.text == b.version.text)


def _model_pick(pool: list[Image], device: Image, kind: str) -> list[Image]:
    real = [one for one in pool if not one.shadow_checkpoint]
    wanted = 2 if kind == "second" else 1
    if len(real) < wanted:
        return []
    newest = real[-wanted]
    level = max(device.introduces_checkpoint, device.requires_checkpoint)
    if level > newest.requires_checkpoint:
        return []
    if kind == "standard" and not _lower(device, newest):
        return []
    steps = []
    for one in pool:
        if (one.variant, one.branch) != (newest.variant, newest.branch) or one.introduces_checkpoint < 1:
            continue
        if (
            _lower(one, newest)
            and level == one.requires_checkpoint
            and one.requires_checkpoint <= (newest.requires_checkpoint)
        ):
            level = one.introduces_checkpoint
            steps += [] if one.shadow_checkpoint else [one]
    if level != newest.requires_checkpoint:
        return []
    steps.append(newest)
    if kind in ("standard", "forced") and any(_equal(one, device) for one in steps):
        return []
    return steps


def _model(
    pool: list[Image], device: Image, branch: str, kind: str, considered: dict[str, tuple[str, ...]]
) -> list[Image]:
    def listed(name: str) -> list[Image]:
        return [one for one in pool if one.branch == name and one.variant == device.variant and not one.skip]

    everything = listed(branch)
    for other in considered.get(branch, ()):
        everything += [one for one in listed(other) if one.version.text != "snapshot"]
    everything.sort(key=cmp_to_key(lambda a, b: -1 if _lower(a, b) else 1))
    own = [one for one in everything if one.branch == branch]
    chosen = _model_pick(everything, device, kind) or _model_pick(own, device, kind)
    if chosen or kind in ("fallback", "second"):
        return chosen
    leaves = branch != device.branch and (
        branch in considered.get(device.branch, ())
        or device.branch not in considered.get(branch, ())
        or device.version.text == "snapshot"
    )
    if device.skip or leaves:
        return _model_pick(everything, device, "forced") or _model_pick(own, device, "forced")
    return []


@st.composite
def _images(draw: st.DrawFn) -> Image:
    introduces = draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
    shadow = introduces > 0 and draw(st.booleans())
    return image_of_fields(
        {
            "product": "steamos",
            "release": "holo",
            "variant": "steamdeck",
            "arch": "amd64",
            "version": draw(st.sampled_from(["3.6", "3.7", "3.7.1", "3.7.1.1", "3.7.1.2", "3.8-rc1", "snapshot"])),
            "buildid": f"202401{draw(st.integers(1, 20)):02d}.{draw(st.integers(0, 2))}",
            "branch": draw(st.sampled_from(_BRANCHES)),
            "introduces_checkpoint": introduces,
            "requires_checkpoint": draw(st.integers(0, max(introduces - 1, 0 if introduces else 3))),
            "shadow_checkpoint": shadow,
            "skip": not shadow and draw(st.integers(0, 7)) == 0,
        }
    )


@given(
    pool=st.lists(_images(), max_size=14),
    device=_images(),
    branch=st.sampled_from(_BRANCHES),
    considered=st.dictionaries(
        st.sampled_from(_BRANCHES), st.lists(st.sampled_from(_BRANCHES), unique=True, max_size=2).map(tuple)
    ),
    kind=st.sampled_from([Kind.STANDARD, Kind.FALLBACK, Kind.PENULTIMATE]),
)
@settings(max_examples=600)
def test_selection_agrees_with_the_model(
    pool: list[Image], device: Image, branch: str, considered: dict[str, tuple[str, ...]], kind: Kind
) -> None:
    considered = {name: tuple(one for one in others if one != name) for name, others in considered.items()}
    support = Support(
        products=("steamos",),
        releases=("holo",),
        variants=("steamdeck",),
        archs=("amd64",),
        branches=_BRANCHES,
        unstable=True,
        considered=considered,
        strict_pool=False,
        strict_compatibility=True,
    )
    entries = [Entry(image, f"{number}.raucb") for number, image in enumerate(pool)]
    name = {"standard": "standard", "fallback": "fallback", "penultimate": "second"}[kind.value]

    update = Selection(assemble(entries, support)).answer(device, branch=branch, kind=kind)
    expected = _model(pool, device, branch, name, considered)

    found = [candidate.image for candidate in update.minor.candidates] if update.minor is not None else []
    assert sorted(map(str, found)) == sorted(map(str, expected))
    if found:
        assert not any(_lower(later, sooner) for sooner, later in itertools.pairwise(found)) or any(
            "snapshot" in one.version.text for one in found
        )
