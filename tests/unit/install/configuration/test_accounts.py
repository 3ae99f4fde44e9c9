"""Merging files of accounts."""

from overhaul.install.configuration.accounts import is_account_file, merge_accounts

BASE = b"root:x:0:0::/root:/bin/sh\nntp:x:100:100::/:/bin/false\n"
ALICE = b"alice:x:1000:1000::/home/alice:/bin/sh\n"
CHRONY = b"chrony:x:101:101::/:/bin/false\n"


def test_users_of_both_sides_are_there_the_owners_first() -> None:
    assert merge_accounts(b"passwd", BASE, BASE + ALICE, BASE + CHRONY) == BASE + ALICE + CHRONY


def test_a_user_that_the_release_dropped_goes_unless_it_was_changed_here() -> None:
    without = BASE.replace(b"ntp:x:100:100::/:/bin/false\n", b"")
    assert merge_accounts(b"passwd", BASE, BASE + ALICE, without) == without + ALICE
    changed = BASE.replace(b"/bin/false", b"/bin/sh")
    assert merge_accounts(b"passwd", BASE, changed, without) is None


def test_a_password_set_here_stays_beside_a_new_system_user() -> None:
    assert merge_accounts(b"shadow", b"root:*:1:\n", b"root:$6$x:1:\n", b"root:*:1:\nchrony:!:2:\n") == (
        b"root:$6$x:1:\nchrony:!:2:\n"
    )


def test_two_users_with_one_number_are_a_conflict() -> None:
    assert merge_accounts(b"passwd", BASE, BASE + b"mine:x:101:5::/:/bin/sh\n", BASE + CHRONY) is None


def test_what_is_no_record_is_a_conflict() -> None:
    assert merge_accounts(b"group", BASE, b"a comment\n" + BASE, BASE + CHRONY) is None
    assert merge_accounts(b"group", BASE, BASE + BASE, BASE + CHRONY) is None


def test_only_files_of_accounts_are_merged_so() -> None:
    assert is_account_file(b"passwd")
    assert not is_account_file(b"pam.d/passwd")
