"""Hardware rules: every predicate, three-valued composition, and that what is unknown fails safe."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import HARDWARE, PREDICATES, RULES

from overhaul.policy.hardware import (
    Absent,
    AllOf,
    AnyOf,
    Equals,
    HardwareRules,
    Not,
    NumberRange,
    Predicate,
    Present,
    UnusableHardwareRuleError,
    Verdict,
    VersionRange,
    evaluate,
    facts_asked,
    judge,
)

DEVICE = {"board": "rpi4", "firmware": "1.10", "memory_mb": "2048", "model": "X1 Carbon Gen6", "serial": ""}

#: (JSON of a predicate, its answer for DEVICE)
ANSWERS = [
    ('{"is": "equals", "fact": "board", "value": "rpi4"}', True),
    ('{"is": "equals", "fact": "board", "value": "RPI4"}', False),
    ('{"is": "equals", "fact": "serial", "value": ""}', True),
    ('{"is": "equals", "fact": "vendor", "value": "acme"}', None),
    ('{"is": "one_of", "fact": "board", "values": ["rpi3", "rpi4"]}', True),
    ('{"is": "one_of", "fact": "board", "values": ["rpi3"]}', False),
    ('{"is": "glob", "fact": "model", "pattern": "X1 * Gen[67]"}', True),
    ('{"is": "glob", "fact": "model", "pattern": "X1"}', False),
    ('{"is": "version", "fact": "firmware", "at_least": "1.9"}', True),
    ('{"is": "version", "fact": "firmware", "at_least": "1.10", "below": "2"}', True),
    ('{"is": "version", "fact": "firmware", "below": "1.10"}', False),
    ('{"is": "version", "fact": "bios", "below": "1.10"}', None),
    ('{"is": "number", "fact": "memory_mb", "at_least": 2048}', True),
    ('{"is": "number", "fact": "memory_mb", "at_most": 2047.5}', False),
    ('{"is": "number", "fact": "board", "at_least": 1}', None),
    ('{"is": "number", "fact": "serial", "at_least": 1}', None),
    ('{"is": "present", "fact": "board"}', True),
    ('{"is": "present", "fact": "tpm"}', False),
    ('{"is": "absent", "fact": "tpm"}', True),
    ('{"is": "not", "of": {"is": "equals", "fact": "vendor", "value": "acme"}}', None),
]  # fmt: skip

YES, NO, UNKNOWN = Present(fact="board"), Present(fact="tpm"), Equals(fact="vendor", value="acme")

#: (predicate, its answer for DEVICE)
COMPOSED = [
    (AllOf(of=(YES, YES)), True),
    (AllOf(of=(YES, UNKNOWN)), None),
    (AllOf(of=(NO, UNKNOWN)), False),
    (AnyOf(of=(YES, UNKNOWN)), True),
    (AnyOf(of=(NO, UNKNOWN)), None),
    (AnyOf(of=(NO, NO)), False),
    (Not(of=YES), False),
    (Not(of=UNKNOWN), None),
]

RPI4 = Equals(fact="board", value="rpi4")


@pytest.mark.parametrize(("document", "answer"), ANSWERS)
def test_a_predicate_answers(document: str, answer: bool | None) -> None:
    predicate = msgspec.json.decode(document, type=Predicate)

    assert evaluate(predicate, DEVICE) is answer


@pytest.mark.parametrize(("predicate", "answer"), COMPOSED)
def test_unknown_spreads_as_far_as_it_must(predicate: Predicate, answer: bool | None) -> None:
    assert evaluate(predicate, DEVICE) is answer


@pytest.mark.parametrize(
    ("rules", "hardware", "verdict"),
    [
        (None, {}, Verdict.MEANT),
        (HardwareRules(), {}, Verdict.MEANT),
        (HardwareRules(allow=(RPI4,)), {"board": "rpi4"}, Verdict.MEANT),
        (HardwareRules(allow=(RPI4,)), {"board": "rpi5"}, Verdict.EXCLUDED),
        (HardwareRules(allow=(RPI4,)), {}, Verdict.UNKNOWN),
        (HardwareRules(allow=(RPI4, Absent(fact="board"))), {}, Verdict.MEANT),
        (HardwareRules(deny=(RPI4,)), {"board": "rpi4"}, Verdict.EXCLUDED),
        (HardwareRules(deny=(RPI4,)), {"board": "rpi5"}, Verdict.MEANT),
        (HardwareRules(deny=(RPI4,)), {}, Verdict.UNKNOWN),
        (HardwareRules(allow=(Present(fact="board"),), deny=(RPI4,)), {"board": "rpi4"}, Verdict.EXCLUDED),
        (HardwareRules(allow=(Present(fact="tpm"),), deny=(RPI4,)), {}, Verdict.EXCLUDED),
    ],
)
def test_the_lists_decide(rules: HardwareRules | None, hardware: dict[str, str], verdict: Verdict) -> None:
    assert judge(rules, hardware) is verdict


@given(RULES, HARDWARE, HARDWARE)
def test_learning_a_fact_never_contradicts_what_was_known(
    rules: HardwareRules, known: dict[str, str], learned: dict[str, str]
) -> None:
    """Without predicates about presence, a decided verdict stays as it is when more facts become known."""
    predicates = [*rules.allow, *rules.deny]
    while predicates:
        predicate = predicates.pop()
        if isinstance(predicate, Present | Absent):
            return
        if isinstance(predicate, AllOf | AnyOf):
            predicates.extend(predicate.of)
        elif isinstance(predicate, Not):
            predicates.append(predicate.of)
    before, after = judge(rules, known), judge(rules, learned | known)

    assert before is Verdict.UNKNOWN or after is before


@given(PREDICATES, PREDICATES, HARDWARE)
def test_composition_follows_de_morgan(one: Predicate, other: Predicate, hardware: dict[str, str]) -> None:
    neither = AllOf(of=(Not(of=one), Not(of=other)))

    assert evaluate(Not(of=AnyOf(of=(one, other))), hardware) is evaluate(neither, hardware)


@given(RULES)
def test_rules_survive_json(rules: HardwareRules) -> None:
    assert msgspec.json.decode(msgspec.json.encode(rules), type=HardwareRules) == rules


@given(RULES, HARDWARE)
def test_only_the_facts_asked_for_matter(rules: HardwareRules, hardware: dict[str, str]) -> None:
    asked = facts_asked(rules)

    assert judge(rules, hardware) is judge(rules, {fact: value for fact, value in hardware.items() if fact in asked})


def test_a_rule_is_bounded_in_depth_and_number() -> None:
    deep: Predicate = RPI4
    for _level in range(8):
        deep = Not(of=deep)

    for rules in ((deep,), (AnyOf(of=(RPI4,) * 256),)):
        with pytest.raises(UnusableHardwareRuleError, match="nests deeper than 8 or has more than 256"):
            HardwareRules(allow=rules)


def test_a_range_has_at_least_one_bound() -> None:
    with pytest.raises(UnusableHardwareRuleError, match="firmware has neither"):
        VersionRange(fact="firmware")
    with pytest.raises(UnusableHardwareRuleError, match="memory_mb has neither"):
        NumberRange(fact="memory_mb")


@given(st.text(max_size=40), st.sampled_from(["1_000", " 5", "5 ", "nan", "inf", "0x10", "٣", "1e3"]))
def test_only_plain_decimals_are_numbers(text: str, trap: str) -> None:
    anything = NumberRange(fact="memory_mb", at_most=float("inf"))

    assert evaluate(anything, {"memory_mb": trap}) is None
    assert evaluate(anything, {"memory_mb": text}) in {None, True}
