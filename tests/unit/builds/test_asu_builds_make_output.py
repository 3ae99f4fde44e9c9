"""What ImageBuilders print, of both package managers."""

import pytest

from overhaul.builds.make_output import command_packages, package_problems, parse_info, parse_manifest, problem_text

INFO = """\
Current Target: "ath79/generic"
Current Architecture: "mips_24kc"
Current Revision: "r24106-10cc5fcd00"
Default Packages: base-files busybox dnsmasq
Available Profiles:

8dev_carambola2:
    8devices Carambola 2
    Packages: kmod-usb-core -dnsmasq
    hasImageMetadata: 1
    SupportedDevices: 8dev,carambola2 carambola2
none:
    No packages
    Packages:
    hasImageMetadata: 0
"""


def test_info_is_read() -> None:
    info = parse_info(INFO)

    assert info.revision == "r24106-10cc5fcd00"
    assert info.default_packages == ("base-files", "busybox", "dnsmasq")
    assert info.profiles == {"8dev_carambola2": ("kmod-usb-core", "-dnsmasq"), "none": ()}
    empty = parse_info("")
    assert (empty.revision, empty.default_packages, empty.profiles) == ("", (), {})


def test_manifests_of_both_package_managers_are_read() -> None:
    assert parse_manifest("vim - 9.1-1\nlibc - 1.2.4-4\n") == {"vim": "9.1-1", "libc": "1.2.4-4"}
    assert parse_manifest("vim 9.1-r1\nnoise\n\nlibc 1.2.5-r4\n") == {"vim": "9.1-r1", "libc": "1.2.5-r4"}


@pytest.mark.parametrize(
    ("said", "missing", "conflicts"),
    [
        ("Collected errors:\n * opkg_install_cmd: Cannot install package nope.\n", ("nope",), ()),
        ("ERROR: unable to select packages:\n  nope (no such package):\n    required by: world[nope]\n", ("nope",), ()),
        (
            (
                " * check_conflicts_for: The following packages conflict with a:\n * check_conflicts_for: \tb * \n"
                " * opkg_install_cmd: Cannot install package a.\n"
            ),
            (),
            ("a", "b"),
        ),
        (
            (
                " * check_data_file_clashes: Package a wants to install file /x\n"
                "\tBut that file is already provided by package  * b\n"
                " * opkg_install_cmd: Cannot install package a.\n"
            ),
            (),
            ("a", "b"),
        ),
        ("ERROR: unable to select packages:\n  a-1.2-r3:\n    conflicts: b-2.0-r1[a]\n", (), ("a", "b")),
        ("ERROR: a-1.2-r3: trying to overwrite etc/x owned by b-2-r1.\n", (), ("a", "b")),
        ("something else\n", (), ()),
    ],
)
def test_the_packages_in_the_way_are_named(said: str, missing: tuple[str, ...], conflicts: tuple[str, ...]) -> None:
    assert package_problems(said) == (missing, conflicts)


def test_the_sentence_is_the_one_that_clients_match() -> None:
    assert problem_text((), ()) == "Impossible package selection"
    assert problem_text(("a", "b"), ("c",)) == "Impossible package selection: missing (a, b) conflicts (c)"


def test_a_whole_list_takes_away_what_is_not_in_it() -> None:
    info = parse_info(INFO)
    requested = ("vim", "busybox")

    assert command_packages(info, "8dev_carambola2", requested, is_whole=False) == requested
    assert command_packages(info, "8dev_carambola2", requested, is_whole=True) == (
        "-base-files",
        "-dnsmasq",
        "-kmod-usb-core",
        "vim",
        "busybox",
    )
    assert command_packages(info, "unknown", requested, is_whole=True) == ("-base-files", "-dnsmasq", *requested)
