"""The public names of both eras, against the published vectors."""

import pytest

from overhaul.dialects.asu import hashes


def _today(**given: object) -> str:
    known: dict[str, object] = {
        "distro": "openwrt", "version": "1.2.3", "version_code": "", "target": "testtarget/testsubtarget",
        "profile": "testprofile", "packages": [], "packages_versions": {}, "diff_packages": False, "filesystem": None,
        "defaults": None, "rootfs_size_mb": None, "repository_keys": [], "repositories": {},
        "repositories_mode": "replace",
    }  # fmt: skip
    return hashes.today_request_hash(**{**known, **given})  # type: ignore[arg-type]


def test_the_seed_era_names_are_those_its_clients_know() -> None:
    packages = hashes.seed_packages_hash(["libuci-lua", "cgi-io"])
    assert packages == "b8a8e81cf43b"
    tuple_ = {"version": "18.06.4", "target": "ar71xx/generic", "profile": "tl-wdr4300-v1", "defaults_hash": ""}
    assert hashes.seed_request_hash(distro="openwrt", packages_hash=packages, **tuple_) == "072bd1dc9117"
    assert hashes.seed_request_hash(distro="OpenWrt", packages_hash=packages, **tuple_) == "00bf27442ed4"
    assert hashes.seed_defaults_hash("echo hi\n") == "ab08508fdf5ca4da5c4995987bc41c56"
    manifest = hashes.seed_manifest_hash(hashes.manifest_text({"vim": "2", "base-files": "1"}))
    assert manifest == "ce3c58a26130186"
    assert hashes.seed_image_hash(distro="openwrt", manifest_hash=manifest, **tuple_) == "78c48250fc0a0c7"


_FOUR = ["aaa", "test1", "test2", "zzz"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"distro": "test", "version": "test", "profile": "test", "packages": ["test"]},
         "525e19496bd8d47b9b63aa5fb2b2f5da467558893d39a42eb32210007fd57800"),
        ({"packages": _FOUR, "diff_packages": True},
         "1c4a79c6b711a576996cf9a5e7046a4581008c4466574096266f0e6ea4208fbc"),
        ({"packages": _FOUR[::-1]}, "c5a849e05b60611b465042594fc3489a44f7695c3d09e36433a577ee772ad7b7"),
        ({"defaults": "echo"}, "ba50558496f8fead41e8d5bc72afd1ad7d27bc053afb550a8bf6ee3bbcc64952"),
        ({"version": "23.05.5", "target": "ath79/generic", "profile": "8dev_carambola2", "packages": ["vim", "tmux"]},
         "46cb19fd1dae43b39c4b917e4af1802f41795cd0a0a1c9e5707e59abdb49f2b5"),
        ({"version": "23.05.5", "version_code": "r1-a", "target": "ath79/generic", "profile": "8dev_carambola2",
          "packages_versions": {"vim": "9.1-1"}, "diff_packages": True, "defaults": "echo", "rootfs_size_mb": 256,
          "filesystem": "ext4", "repositories": {"a": "https://x/y"}, "repository_keys": ["K"],
          "repositories_mode": "append"},
         "6dce71a98f7782b23ee6341112dcce313202f165a63dd4f81ab0d74117f4054b"),
    ],
)  # fmt: skip
def test_todays_names_are_those_its_clients_know(request_: dict[str, object], expected: str) -> None:
    assert _today(**request_) == expected


def test_package_order_and_a_leading_plus_change_nothing() -> None:
    expected = "57aab5949a36e66b535a8cb13e39e9e093181c9000c016990d7be9eb86a9b9e8"
    assert hashes.packages_hash(["test1", "test2"]) == hashes.packages_hash(["+test2", "test1", "test1"]) == expected


def test_a_public_name_alone_does_not_tell_two_requests_apart() -> None:
    assert _today(version="1.2", version_code="3") == _today(version="1.23", version_code="")
