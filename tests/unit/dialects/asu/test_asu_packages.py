"""What becomes of packages between versions."""

import pytest

from overhaul.dialects.asu.names import branch_of, is_package, is_target, is_token, newest_first
from overhaul.dialects.asu.packages import TransformationError, fixed, parse_replacement, replaced

#: The reference data of 17.01.0.
_RULES = {
    name: parse_replacement(name, value)
    for name, value in {
        "libmicrohttpd": "libmicrohttpd-no-ssl",
        "openvpn": {"openvpn-openssl": True, "openvpn-mbedtls": ["polarssl", "mbedtls"], "openvpn-nossl": False},
        "polarssl": "mbedtls",
        "kmod-ipv6": None,
    }.items()
}
_KNOWN = {"openvpn-openssl", "openvpn-mbedtls", "openvpn-nossl", "mbedtls", "cgi-io", "libmicrohttpd-no-ssl", "a", "b"}


@pytest.mark.parametrize(
    ("installed", "asked"),
    [
        ({"openvpn", "cgi-io"}, {"openvpn-openssl", "cgi-io"}),
        ({"openvpn", "polarssl"}, {"openvpn-mbedtls", "mbedtls"}),
        ({"kmod-ipv6", "libmicrohttpd"}, {"libmicrohttpd-no-ssl"}),
        ({"never-heard-of"}, set()),
        (set(), set()),
    ],
)
def test_packages_are_renamed_dropped_and_chosen_by_their_company(installed: set[str], asked: set[str]) -> None:
    assert replaced(installed, [_RULES], known=_KNOWN) == asked


def test_no_version_crossed_changes_nothing_that_is_known() -> None:
    assert replaced({"openvpn", "cgi-io"}, [], known={*_KNOWN, "openvpn"}) == {"openvpn", "cgi-io"}


def test_one_package_can_become_several() -> None:
    split = {"both": parse_replacement("both", ["a", "b"])}
    assert replaced({"both", "cgi-io"}, [split], known=_KNOWN) == {"a", "b", "cgi-io"}


def test_every_rule_looks_at_what_was_installed_and_not_at_what_another_made() -> None:
    first = {"x": parse_replacement("x", "y")}
    second = {"y": parse_replacement("y", "z")}
    assert replaced({"x"}, [first, second], known={"y", "z"}) == {"y"}


@pytest.mark.parametrize("value", [1, {"a": "b"}, {"a": [1]}, [1], {1: True}])
def test_a_rule_that_means_nothing_is_refused_by_name(value: object) -> None:
    with pytest.raises(TransformationError, match="libfoo"):
        parse_replacement("libfoo", value)


@pytest.mark.parametrize(
    ("version", "target", "profile", "packages", "expected"),
    [
        ("23.05.5", "mediatek/mt7622", "x", ["vim"], ["vim", "kmod-mt7622-firmware"]),
        ("23.05.5", "ath79/generic", "dlink_dir-825-b1", [], ["kmod-switch-rtl8366s"]),
        ("23.05.5", "ath79/generic", "other", ["vim"], ["vim"]),
        ("24.10.1", "x/y", "z", ["vim", "auc", "tmux"], ["vim", "tmux", "owut"]),
        ("24.10.1", "x/y", "z", ["auc", "owut"], ["owut"]),
        ("24.10.0", "mediatek/filogic", "z", ["fitblk"], ["fitblk"]),
        ("25.12.0", "lantiq/xrx200_legacy", "tplink_tdw8970", [],
         ["kmod-dsa-gswip", "xrx200-rev1.1-phy11g-firmware", "xrx200-rev1.2-phy11g-firmware"]),
        ("SNAPSHOT", "x/y", "z", ["kmod-lib-crc32c", "vim"], ["vim"]),
        ("SNAPSHOT", "x/y", "z", ["luci-i18n-opkg-de", "vim"], ["luci-i18n-package-manager-de", "vim"]),
        ("23.05.5", "x/y", "z", ["luci-i18n-opkg-de"], ["luci-i18n-opkg-de"]),
        ("23.05.5", "x/y", "z", ["luci-i18n-base-en", "luci-i18n-base-de"], ["luci-i18n-base-de"]),
    ],
)  # fmt: skip
def test_a_system_gets_what_its_version_needs_in_the_order_given(
    version: str, target: str, profile: str, packages: list[str], expected: list[str]
) -> None:
    assert list(fixed(packages, version=version, target=target, profile=profile)) == expected


@pytest.mark.parametrize(
    ("version", "branch"),
    [("23.05.5", "23.05"), ("24.10.0-rc1", "24.10"), ("24.10-SNAPSHOT", "24.10"), ("SNAPSHOT", "SNAPSHOT"),
     ("23.05", "23.05"), ("19.07.1", None), ("", None), ("23.051.1", None)],
)  # fmt: skip
def test_a_version_belongs_to_at_most_one_branch(version: str, branch: str | None) -> None:
    assert branch_of(version, ["SNAPSHOT", "24.10", "23.05"]) == branch


def test_a_release_comes_before_its_candidates_and_these_before_its_snapshot() -> None:
    versions = ["24.10-SNAPSHOT", "24.10.0", "24.10.0-rc6", "24.10.1", "24.10.0-rc7"]
    assert newest_first(versions) == ["24.10.1", "24.10.0", "24.10.0-rc7", "24.10.0-rc6", "24.10-SNAPSHOT"]


@pytest.mark.parametrize(
    "text", ["", "vim\n", "a b", "a;b", "$(id)", "../x", "-vim", "`x`", "a/b", "ä", "x" * 129, "a\0b", "a'b"]
)
def test_what_a_shell_or_a_path_would_read_otherwise_is_no_name(text: str) -> None:
    assert not is_package(text)
    assert not is_token(text)
    assert not is_target(text) or text == "a/b"
    assert not is_token("..")
