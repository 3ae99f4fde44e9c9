"""What the facts amount to."""

from overhaul.server.catalogue import Catalogue, RoleState
from overhaul.server.health import Health, Readiness, judge_health

NOW = 1_000_000


def _catalogue(**expires_in: int) -> Catalogue:
    roles = tuple(RoleState(name=name, version=1, expires_at=NOW + left) for name, left in expires_in.items())
    return Catalogue(pointer_etag="x", roles=roles, releases=(), policies=())


def _judge(
    catalogue: Catalogue | None, *, reading_problem: str | None = None, database_problem: str | None = None
) -> Health:
    return judge_health(
        catalogue=catalogue,
        reading_problem=reading_problem,
        database_problem=database_problem,
        now=NOW,
        warn_before_s=3600,
    )


def test_a_repository_with_time_left_is_ready() -> None:
    health = _judge(_catalogue(timestamp=7200, root=9000))

    assert (health.status, health.problems, health.warnings) == (Readiness.READY, (), ())
    assert health.expires_at == NOW + 7200


def test_a_role_near_its_end_warns_and_names_the_command() -> None:
    health = _judge(_catalogue(timestamp=1800, root=9000))

    assert health.status is Readiness.DEGRADED
    (sentence,) = health.warnings
    assert "timestamp expires in 30 minutes" in sentence
    assert "overhaul repository refresh" in sentence


def test_an_expired_role_means_that_devices_cannot_be_served() -> None:
    assert _judge(_catalogue(timestamp=0, root=9000)).status is Readiness.UNREADY


def test_nothing_published_is_not_ready() -> None:
    assert _judge(None).status is Readiness.UNREADY


def test_a_state_that_cannot_be_read_counts_less_while_an_older_one_is_known() -> None:
    assert _judge(None, reading_problem="broken").problems == ("broken",)
    assert _judge(_catalogue(timestamp=7200), reading_problem="broken").status is Readiness.DEGRADED


def test_devices_are_served_without_a_database() -> None:
    assert _judge(_catalogue(timestamp=7200), database_problem="it is gone").status is Readiness.DEGRADED
