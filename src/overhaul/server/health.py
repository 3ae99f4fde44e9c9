"""Whether the server can do its work: what a supervisor, a load balancer and the status page ask. Pure."""

from enum import StrEnum

import msgspec

from overhaul.server.catalogue import Catalogue


class Readiness(StrEnum):
    """Ready and degraded both serve devices; unready does not."""

    READY = "ready"
    DEGRADED = "degraded"
    UNREADY = "unready"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer and the sentences that explain it."""

    status: Readiness
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    #: Seconds since 1970 UTC from which devices refuse the repository; None when nothing is published.
    expires_at: int | None


def judge_health(
    *,
    catalogue: Catalogue | None,
    reading_problem: str | None,
    database_problem: str | None,
    now: int,
    warn_before_s: int,
) -> Health:
    """Return what the facts amount to at `now`."""
    problems: list[str] = []
    warnings: list[str] = []
    if catalogue is None and reading_problem is None:
        problems.append("The repository has no signed metadata yet; publish a release with `overhaul publish`.")
    if reading_problem is not None:
        (warnings if catalogue is not None else problems).append(reading_problem)
    if database_problem is not None:
        warnings.append(f"Reports cannot be stored: {database_problem}")
    for role in catalogue.roles if catalogue is not None else ():
        left = role.expires_at - now
        if left <= 0:
            problems.append(
                f"The signature of {role.name} has expired, so devices refuse the repository; "
                "run `overhaul repository refresh`."
            )
        elif left <= warn_before_s:
            warnings.append(
                f"The signature of {role.name} expires in {left // 60} minutes; run `overhaul repository refresh` "
                "or enable its timer."
            )
    if catalogue is not None:
        warnings.extend(f"A published file cannot be used: {sentence}" for sentence in catalogue.damaged)
    status = Readiness.UNREADY if problems else Readiness.DEGRADED if warnings else Readiness.READY
    return Health(
        status=status,
        problems=tuple(problems),
        warnings=tuple(warnings),
        expires_at=None if catalogue is None else catalogue.expires_at,
    )
