"""The reference of exit codes, generated from the classes that define them.

Write it anew with `python -m overhaul.cli.exit_codes > docs/reference/exit-codes.md`; a test says when it is stale.
"""

import click

from overhaul.agent.outcomes import ExitCode
from overhaul.cli.output import HALTED_EXIT_CODE, INTERRUPTED_EXIT_CODE
from overhaul.errors import OverhaulError

_HEAD = """\
# Exit codes

Every command ends with one of these. Scripts should branch on them and never on text; with `--json` an error is also
one JSON object on standard error: `error` (the class), `message`, `retryable`.

This page is generated: `python -m overhaul.cli.exit_codes > docs/reference/exit-codes.md`.

| code | meaning | trying again, unchanged, can help |
|---|---|---|
"""

_UNCHANGING = {
    0: "It was done.",
    1: "An unexpected error: a bug, shown with its traceback. Without a word: nobody read the output any more.",
    2: "Wrong usage of the command line.",
}


def exit_code_page() -> str:
    """Return the page as Markdown."""
    rows = {code: (meaning, "") for code, meaning in _UNCHANGING.items()}
    for family in OverhaulError.__subclasses__():
        if family.__module__ == OverhaulError.__module__:
            meaning = f"`{family.__name__}`: {(family.__doc__ or '').splitlines()[0]}"
            rows[family.exit_code] = (meaning, "yes" if family.retryable else "no")
    for answer in ExitCode:
        if answer is not ExitCode.DONE:
            rows[answer.value] = (f"`overhaul device`: {answer.meaning}", "later" if answer is ExitCode.HELD else "")
    rows[HALTED_EXIT_CODE] = ("`overhaul policy`: a rollout is halted, or is to be.", "")
    rows[INTERRUPTED_EXIT_CODE] = ("Interrupted; what was done so far is kept.", "yes")
    table = "".join(f"| {code} | {meaning} | {again} |\n" for code, (meaning, again) in sorted(rows.items()))
    return f"{_HEAD}{table}{_commands()}"


def _commands() -> str:
    return """
## The device's commands

| command | 0 | 20 | 21 | 6 |
|---|---|---|---|---|
| `device check` | there is an offer | up to date | held | |
| `device update` | installed, or awaits its restart | up to date | held | not confirmed, no room, slot unusable |
| `device confirm` | confirmed | was confirmed | | unhealthy: rolled back; or not to be confirmed |
| `device rollback` | going back, or called off | | | there is nothing to go back to |
| `device status`, `history`, `init` | done | | | |
"""


if __name__ == "__main__":
    click.echo(exit_code_page(), nl=False)
