"""How the updates to one release ended, counted out of what devices reported.

    reports of one update                         counts as
    rolled-back among them                        rolled back
    confirmed                                     confirmed
    cancelled, or nothing but failed              not installed
    the last is restarting, older than its grace  lost
    the last is installed or waiting, older ...   lost
    otherwise                                     open

A confirmed update is settled once an update of the same kind that was never heard of again would count as lost; see
`policy.health` for what that is good for. Times are those at which reports arrived here: no device's clock counts.
"""

from typing import Any

import sqlalchemy as sa

from overhaul.policy.health import Evidence
from overhaul.publishing.rollouts import Question
from overhaul.release.record import ReleaseId
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import DEVICE_REPORTS
from overhaul.server.reports import Outcome


def evidence_of(database: Database, question: Question) -> Evidence:
    """Return how the updates ended that `question` is about: their first report arrived when it says, or later."""
    updates = _updates(question.release, channel=question.channel, since=question.since)
    query = _counted(
        updates,
        now=question.now,
        restart_grace_s=question.restart_grace_s,
        silence_grace_s=question.silence_grace_s,
    )
    with database.reading() as connection:
        found = {row.ending: (row.number, row.settled) for row in connection.execute(query)}
    return Evidence(
        confirmed=found.get("confirmed", (0, 0))[0],
        confirmed_and_settled=int(found.get("confirmed", (0, 0))[1] or 0),
        rolled_back=found.get("rolled_back", (0, 0))[0],
        lost=found.get("lost", (0, 0))[0],
        open=found.get("open", (0, 0))[0],
        not_installed=found.get("not_installed", (0, 0))[0],
    )


def _updates(release: ReleaseId, *, channel: str, since: int) -> sa.Subquery:
    """One row for each update: whether some outcome was reported, and when the device was last under way."""
    columns = DEVICE_REPORTS.c

    def seen(*outcomes: Outcome) -> sa.Label[Any]:
        names = [outcome.value for outcome in outcomes]
        return sa.func.max(sa.case((columns.outcome.in_(names), 1), else_=0)).label(outcomes[0].name.lower())

    def last(*outcomes: Outcome) -> sa.ColumnElement[Any]:
        names = [outcome.value for outcome in outcomes]
        return sa.func.max(sa.case((columns.outcome.in_(names), columns.received_at)))

    return (
        sa.select(
            sa.func.min(columns.received_at).label("began"),
            seen(Outcome.CONFIRMED),
            seen(Outcome.ROLLED_BACK),
            seen(Outcome.CANCELLED),
            last(Outcome.RESTARTING).label("restarted"),
            last(Outcome.WAITING).label("waited"),
            last(Outcome.INSTALLED).label("installed"),
        )
        .where(
            columns.product == release.product,
            columns.variant == release.variant,
            columns.arch == release.arch,
            columns.channel == channel,
            columns.to_version == release.version,
            columns.to_build_id == release.build_id,
            columns.update_id.is_not(None),
        )
        .group_by(columns.update_id)
        .having(sa.func.min(columns.received_at) >= since)
        .subquery()
    )


def _counted(updates: sa.Subquery, *, now: int, restart_grace_s: int, silence_grace_s: int) -> sa.Select[Any]:
    one = updates.c
    # In one second a device tells that it is installed, then that it goes down, then that it waits after all.
    restarts = one.restarted.is_not(None) & (one.restarted > sa.func.coalesce(one.waited, 0))
    grace_ended = sa.case(
        (restarts, one.restarted <= now - restart_grace_s),
        else_=sa.func.coalesce(one.waited, one.installed, one.began) <= now - silence_grace_s,
    )
    set_out = sa.func.coalesce(one.restarted, one.waited, one.installed)
    ending = sa.case(
        (one.rolled_back == 1, "rolled_back"),
        (one.confirmed == 1, "confirmed"),
        ((one.cancelled == 1) | set_out.is_(None), "not_installed"),
        (grace_ended, "lost"),
        else_="open",
    ).label("ending")
    settled = sa.func.sum(sa.case((grace_ended, 1), else_=0)).label("settled")
    return sa.select(ending, sa.func.count().label("number"), settled).group_by(ending)
