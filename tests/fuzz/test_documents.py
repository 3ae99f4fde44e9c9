"""Signed documents: release records and policies, and the decisions made from them."""

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overhaul.errors import TrustError
from overhaul.policy.document import (
    Floor,
    Policy,
    PolicyEntry,
    Recall,
    UnreadablePolicyError,
    decode_policy,
    encode_policy,
)
from overhaul.policy.facts import DeviceFacts, UnreadableFactsError, decode_facts, encode_facts
from overhaul.policy.floors import highest_floor
from overhaul.policy.hardware import (
    AllOf,
    AnyOf,
    Equals,
    Glob,
    HardwareRules,
    Not,
    NumberRange,
    OneOf,
    Present,
    VersionRange,
    facts_asked,
    judge,
)
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.policy.selection import decide
from overhaul.release.names import UnusableNameError, check_name, check_token
from overhaul.release.record import (
    DeltaRef,
    FileRef,
    ImageRecord,
    PackRef,
    Release,
    ReleaseId,
    decode_release,
    encode_release,
)
from overhaul.release.versions import Version
from overhaul.trust.roles import UnownedPathError, role_of_path
from tests.fuzz.mutations import as_json, fuzzing, judged, spoilt_json

_REF = FileRef(path="content/packs/ab/abcd.pack", size=1000, sha256="ab" * 32)
_RELEASE = Release(
    format=1,
    id=ReleaseId(product="weather", variant="lite", arch="amd64", version="1.1-rc.2+deb12u1", build_id="20260601.2"),
    published_at=1_780_000_000,
    image=ImageRecord(
        size=1 << 31,
        filesystem="ext4",
        index=_REF,
        packs=(PackRef(pack=_REF, frames=_REF),) * 2,
        deltas=(
            DeltaRef(
                source_index="cd" * 32,
                source_version="1.0",
                source_build_id="20260501",
                file=_REF,
                header_size=200,
                header_sha256="ef" * 32,
                coders=("covers", "lzma2"),
            ),
        ),
    ),
)
_RULES = HardwareRules(
    allow=(
        AnyOf(of=(Equals(fact="board", value="rpi4"), OneOf(fact="board", values=("rpi5", "rpi4")))),
        AllOf(of=(Glob(fact="model", pattern="X1 * Gen[67]"), Not(of=Present(fact="tpm")))),
    ),
    deny=(
        VersionRange(fact="firmware", at_least="1.4", below="2.0"),
        NumberRange(fact="memory_mb", at_least=512, at_most=4096.5),
    ),
)
_ROLLOUT = Rollout(percent=5, steps=(RolloutStep(since=1_780_000_000, percent=50.0),), seed="a")
_FACTS = DeviceFacts(
    product="weather",
    variant="lite",
    arch="amd64",
    channel="stable",
    version="1.0",
    build_id="20260101",
    hardware={"board": "rpi4", "memory_mb": "2048", "firmware": "1.5", "model": "X1 a Gen6"},
    rollout_id="f4c1b8",
    refused=(("1.1", "2"),),
)


def _entry(version: str, **more: object) -> PolicyEntry:
    return PolicyEntry(variant="lite", arch="amd64", version=version, build_id="20260601", **more)  # type: ignore[arg-type]


_POLICY = Policy(
    product="weather",
    channel="stable",
    revision=7,
    signed_at=1_780_000_000,
    floors=(Floor(variant="lite", arch="amd64", support="1.0", minimum="0.9"),),
    entries=(
        _entry("1.0", checkpoint=True, recall=Recall(reason="bad", since=1, replaced_by=("1.1", "20260601"))),
        _entry("1.1", checkpoint=True, hardware=_RULES, rollout=_ROLLOUT),
        _entry("2.0", requires="1.0", urgent=True, hardware=_RULES, notes_url="https://example.com/notes"),
    ),
)
_NOW = 1_780_000_000


@fuzzing(210)
@given(spoilt_json(encode_release(_RELEASE)))
def test_a_release_record_is_read_or_refused_and_its_paths_stay_below_the_root(data: bytes) -> None:
    release = judged(lambda: decode_release(data), refusal=TrustError)
    if release is None:
        return
    assert role_of_path(release.id.target_path) == release.id.product
    image = release.image
    packs = [ref for pack in image.packs for ref in (pack.pack, pack.frames)]
    for ref in (image.index, *packs, *(delta.file for delta in image.deltas)):
        # Lengths and offsets go to system calls and to range headers as they are.
        assert 0 <= ref.size < 1 << 63
        assert urlsplit(urljoin("https://host/repo/", ref.path)).path == f"/repo/{ref.path}"
    assert 0 <= image.size < 1 << 63
    assert decode_release(encode_release(release)) == release


@pytest.mark.parametrize(
    "path",
    ["..", "a/../b", "a/..", "../a", "/a", "a//b", "a/", ".", "a/./b", "a\n", "a\n/../b", "a/..\n", "a%2e", "a\\b", ""],
)
def test_no_path_leads_out_of_the_public_root(path: str) -> None:
    data = encode_release(_RELEASE).replace(b'"content/packs/ab/abcd.pack"', as_json(path))
    with pytest.raises(TrustError):
        decode_release(data)


@fuzzing(180)
@given(st.text(alphabet="a.Z0/~+-_%\\\n\0é ", max_size=12))
def test_what_is_a_name_is_safe_in_every_path(text: str) -> None:
    for check in (check_name, check_token):
        name = judged(lambda check=check: check("name", text), refusal=UnusableNameError)  # type: ignore[misc]
        if name is not None:
            assert name == text
            assert urlsplit(urljoin("https://host/a/", f"x/{text}/y")).path == f"/a/x/{text}/y"
            assert text.isascii()
            assert not set(text) & set("/\\%\n\0 ")


@fuzzing(180)
@given(st.lists(st.sampled_from(["a", "releases", "policy", "builds", "..", ".", "", "root", "b.json"]), max_size=8))
def test_no_role_signs_a_path_that_leads_elsewhere(parts: list[str]) -> None:
    path = "/".join(parts)
    role = judged(lambda: role_of_path(path), refusal=UnownedPathError)
    assert role is None or not {"", ".", ".."} & set(parts)


@fuzzing(180)
@given(spoilt_json(encode_policy(_POLICY)), st.text(max_size=8) | st.just("1" * 256))
def test_a_policy_is_read_or_refused_and_every_device_can_decide_by_it(data: bytes, value: str) -> None:
    policy = judged(lambda: decode_policy(data), refusal=UnreadablePolicyError)
    if policy is None:
        return
    for entry in policy.entries:
        if entry.hardware is not None:
            asked = dict.fromkeys(facts_asked(entry.hardware), value)
            for hardware in (asked, {}, _FACTS.hardware):
                assert judged(lambda: judge(entry.hardware, hardware), refusal=()) is not None  # noqa: B023
    decision = judged(lambda: decide(policy, _FACTS, _NOW), refusal=())
    assert decision is not None
    assert all(str(reason).encode() for reason in decision.reasons)
    highest_floor(None, policy, _FACTS, keyids=("a",))
    assert decode_policy(encode_policy(policy)) == policy


_LEAVES = st.one_of(
    st.builds(Equals, fact=st.just("a"), value=st.text(max_size=5)),
    st.builds(Glob, fact=st.just("a"), pattern=st.text(alphabet="ab*?[]!-^&|~\\", min_size=1, max_size=128)),
    st.builds(VersionRange, fact=st.just("a"), at_least=st.text(max_size=256)),
    st.builds(NumberRange, fact=st.just("a"), at_most=st.floats() | st.integers(-(10**400), 10**400)),
)
_PREDICATES = st.recursive(
    _LEAVES,
    lambda parts: st.one_of(
        st.builds(Not, of=parts), st.builds(AnyOf, of=st.lists(parts, min_size=1, max_size=4).map(tuple))
    ),
    max_leaves=12,
)


@fuzzing(180)
@given(
    st.lists(_PREDICATES, min_size=1, max_size=3).map(tuple),
    st.text(alphabet="ab*[]-.~+v12", max_size=256) | st.text(alphabet="0123456789", max_size=256) | st.just("a" * 256),
)
def test_every_rule_judges_every_fact(predicates: tuple[Equals, ...], value: str) -> None:
    assume(len(str(predicates)) < 8000)
    rules = judged(lambda: HardwareRules(allow=predicates, deny=predicates), refusal=TrustError | ValueError)  # type: ignore[arg-type]
    assert rules is None or judged(lambda: judge(rules, {"a": value}), refusal=()) is not None


@pytest.mark.parametrize("pattern", ["*a" * 64, "[" * 128, "*?" * 64, "*[ab]" * 25 + "c", "[a-" * 40 + "]"])
def test_no_pattern_makes_a_device_think_for_long(pattern: str) -> None:
    rules = HardwareRules(deny=(Glob(fact="model", pattern=pattern),))
    assert judged(lambda: judge(rules, {"model": "a" * 256}), refusal=()) is not None


@fuzzing(180)
@given(st.text(max_size=256) | st.text(alphabet="0123456789.-+~v", max_size=300))
def test_every_text_has_a_place_among_versions(text: str) -> None:
    version, other = judged(lambda: (Version(text), Version("1.0-rc.1+x")), refusal=()) or (None, None)
    assert version is not None
    assert other is not None
    assert (version < other) + (version == other) + (version > other) == 1


@fuzzing(120)
@given(spoilt_json(encode_facts(_FACTS)))
def test_facts_are_read_or_refused(data: bytes) -> None:
    facts = judged(lambda: decode_facts(data), refusal=UnreadableFactsError)
    if facts is not None:
        assert judged(lambda: decide(_POLICY, facts, _NOW), refusal=()) is not None
