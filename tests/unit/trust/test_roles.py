"""Which role owns a path, and when a signature is due."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import DelegatedRole

from overhaul.errors import InputError
from overhaul.trust import roles
from overhaul.trust.roles import Lifetimes, ReservedNameError, UnownedPathError

_NAMES = st.from_regex(r"[a-z0-9][a-z0-9._+~-]{0,12}", fullmatch=True)
_NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("alpha/releases/desk/amd64/1.0/20260601.json", "alpha"),
        ("alpha/policy/stable.json", "alpha-policy"),
        ("alpha/answers/atomupd.json", "alpha-policy"),
        ("builds/openwrt/0123/image.json", "builds"),
        ("builds/releases/desk/amd64/1.0/x.json", "builds"),
    ],
)
def test_a_path_belongs_to_one_role(path: str, role: str) -> None:
    assert roles.role_of_path(path) == role


@pytest.mark.parametrize(
    "path",
    [
        "",
        "alpha",
        "alpha/policy",
        "alpha/policy/",
        "alpha/policy/a/b.json",
        "/alpha/policy/stable.json",
        "alpha/releases/desk/amd64/1.0",
        "alpha/releases/../amd64/1.0/x.json",
        "builds/policy",
        "root/policy/stable.json",
        "builds/a/b/c/d/e/f/g",
    ],
)
def test_a_path_of_no_role_is_refused(path: str) -> None:
    with pytest.raises(UnownedPathError):
        roles.role_of_path(path)


@given(product=_NAMES, first=_NAMES, second=_NAMES)
def test_python_tuf_finds_a_path_in_its_role_and_in_no_other(product: str, first: str, second: str) -> None:
    try:
        roles.check_product(product)
    except InputError:
        return
    everyone = [product, roles.policy_role(product), roles.BUILDS, "someone-else", "someone-else-policy"]
    for path in (
        f"{product}/releases/{first}/{second}/1/2.json",
        f"{product}/policy/{first}.json",
        f"{product}/answers/{first}.json",
        f"builds/{first}/{second}.json",
    ):
        finds = {
            role
            for role in everyone
            if DelegatedRole(role, ["k"], 1, False, list(roles.paths_of_role(role))).is_delegated_path(path)
        }
        assert finds == {roles.role_of_path(path)}


@pytest.mark.parametrize("product", ["root", "targets", "snapshot", "timestamp", "builds", "alpha-policy"])
def test_a_product_cannot_be_named_like_a_role(product: str) -> None:
    with pytest.raises(ReservedNameError):
        roles.check_product(product)


def test_a_signature_is_due_in_the_last_third_of_its_life() -> None:
    lifetimes = Lifetimes(timestamp=timedelta(days=3))

    assert not lifetimes.is_due("timestamp", expires=_NOON + timedelta(days=1), now=_NOON)
    assert lifetimes.is_due("timestamp", expires=_NOON + timedelta(days=1, seconds=-1), now=_NOON)


def test_a_single_role_can_have_a_lifetime_of_its_own() -> None:
    lifetimes = Lifetimes(exceptions={"alpha-policy": timedelta(days=5)})

    assert lifetimes.of("alpha-policy") == timedelta(days=5)
    assert lifetimes.of("other-policy") == Lifetimes().policy
    assert lifetimes.of("alpha") == Lifetimes().product
