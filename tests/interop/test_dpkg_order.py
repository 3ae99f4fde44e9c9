"""The suffix of a version has the order that Debian's own program gives it."""

import subprocess

from tests.tools import need

from overhaul.release.versions import Version

WORDS = (
    "~ ~~ ~rc1 ~rc10 ~rc2 ~a~ + +b1 +deb12u1 +deb12u10 +deb12u2 +deb12u01 +deb12u2~bpo1 "
    "+a. +a+ +a0 +a +1.2 +1.10 +A +Z +z"
)
SUFFIXES = ["", *WORDS.split()]


def test_suffixes_are_ordered_as_dpkg_orders_them() -> None:
    dpkg = need("dpkg")
    pairs = [(f"1.2{left}", f"1.2{right}") for left in SUFFIXES for right in SUFFIXES]
    script = "\n".join(
        f"{dpkg} --compare-versions '{left}' lt '{right}' && echo older || echo not" for left, right in pairs
    )

    answers = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True).stdout.split()

    assert answers == ["older" if Version(left) < Version(right) else "not" for left, right in pairs]
