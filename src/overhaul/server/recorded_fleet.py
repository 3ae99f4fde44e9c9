"""A fleet like the one that checked in lately, made out of reports that name no device.

A report of a check-in tells what the device runs and how long ago it asked before, so a device that asks every i
seconds reports w / i times in a window of w seconds. Each such report therefore stands for i / w of a device, and
as many devices are made as these parts come to, spread evenly over the reports: the counts of releases run,
of intervals, and of check-ins an hour are those recorded. Rollout ids are drawn anew, which changes nothing, as places
in a rollout are random; what no report tells, such as hardware, stays unknown.
"""

import random
from collections.abc import Iterator

import sqlalchemy as sa

from overhaul.policy.facts import DeviceFacts
from overhaul.policy.replay import MIN_INTERVAL_S, RecordedDevice
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import DEVICE_REPORTS
from overhaul.server.reports import Outcome


def recorded_fleet(
    database: Database, *, product: str, channel: str, begin: int, end: int, seed: int
) -> Iterator[RecordedDevice]:
    """Yield the devices; times in seconds since 1970 UTC, equal seeds give equal fleets."""
    columns = DEVICE_REPORTS.c
    query = (
        sa.select(
            *(columns.variant, columns.arch, columns.from_version, columns.from_build_id),
            *(columns.received_at, columns.seconds),
        )
        .where(
            columns.product == product,
            columns.channel == channel,
            columns.outcome == Outcome.CHECKED.value,
            columns.received_at >= begin,
            columns.received_at < end,
            columns.seconds >= MIN_INTERVAL_S,
        )
        # Alike beside alike, so that the parts of devices that are alike come to whole ones.
        .order_by(columns.variant, columns.arch, columns.from_version, columns.from_build_id, columns.seconds)
    )
    chance = random.Random(seed)  # noqa: S311 - drawn again alike, and nobody's secret
    parts = chance.random()
    with database.reading() as connection:
        for variant, arch, version, build_id, received_at, seconds in connection.execute(query):
            interval_s = round(seconds)
            parts += min(1.0, interval_s / (end - begin))
            while parts >= 1:
                parts -= 1
                yield RecordedDevice(
                    facts=DeviceFacts(
                        product=product,
                        variant=variant,
                        arch=arch,
                        channel=channel,
                        version=version,
                        build_id=build_id,
                        rollout_id=f"{chance.getrandbits(128):032x}",
                    ),
                    first=received_at,
                    every_s=interval_s,
                )
