"""The status page in a real browser: what it says, what it loads, how it fits, how it stays fresh."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect
from tests.asgi import Site, running
from tests.browser import POOR_CONTRAST, chromium, open_page
from tests.published import PublishedRepository

from overhaul.publishing.policies import recall
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    repository = PublishedRepository(tmp_path_factory.mktemp("page") / "repository", products=("weather", "kiosk"))
    repository.publish("1.0", "b1", product="weather", checkpoint=True)
    repository.publish("1.1", "b2", product="weather", rollout_percent=25)
    bad = repository.publish("1.2", "b3", product="weather", channel="beta")
    recall(repository.repository, bad.id, channel="beta", reason="The <network> does not come up.", allow_lower=True)
    long = "2026.11.20.build.0123456789abcdef0123456789abcdef"
    repository.publish(long, "a" * 60, product="kiosk", variant="a-lobby-with-a-long-name", arch="arm64", channel="dev")
    return repository


@pytest.fixture(scope="module")
def site(published: PublishedRepository) -> Iterator[Site]:
    settings = ServerSettings.of_repository(published.directory)
    with running(create_app(settings, clock=published.clock)) as running_site:
        for number, outcome in enumerate(("installed", "confirmed", "failed")):
            report = (
                f'{{"report_id": "{number:032x}", "product": "weather", "variant": "desk", "arch": "amd64", '
                f'"channel": "stable", "from_version": "1.0", "from_build_id": "b1", "to_version": "1.1", '
                f'"to_build_id": "b2", "outcome": "{outcome}", "bytes_received": 21000000, "seconds": 75}}'
            )
            assert running_site.ask("/api/v1/reports", method="POST", body=report.encode()).status == 202
        published.now += 3  # the page may show reports that are a moment old
        yield running_site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def test_the_page_tells_what_is_published_rolled_out_recalled_and_reported(browser: Browser, site: Site) -> None:
    page = open_page(browser, site.url).page

    assert page.locator(".notice.good").inner_text().startswith("Serving devices.")
    stable = page.get_by_role("article", name="weather stable")
    assert stable.get_by_role("progressbar", name="1.1 is open to 25 % of the devices").get_attribute("value") == "25.0"
    assert stable.get_by_text("checkpoint").is_visible()
    beta = page.get_by_role("article", name="weather beta")
    assert "The <network> does not come up. Devices may go back to an older release." in beta.inner_text()
    releases = page.locator("#releases tbody th").all_inner_texts()
    assert {"1.2 (b3)", "1.1 (b2)", "1.0 (b1) checkpoint"} <= set(releases)
    assert page.locator("#reports .outcome-failed dd").first.inner_text() == "1"
    assert "21.0 MB" in page.locator("#reports table").first.inner_text()
    roles = page.locator("#signatures tbody th").all_inner_texts()
    assert {"timestamp", "snapshot", "root", "weather", "weather-policy"} <= set(roles)
    assert set(page.locator("#signatures .badge").all_inner_texts()) == {"valid"}
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_it_fits_is_readable_and_loads_nothing_from_elsewhere(
    browser: Browser, site: Site, width: int, dark: bool
) -> None:
    watched = open_page(browser, site.url, width=width, dark=dark)

    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.page.evaluate(POOR_CONTRAST) == []
    assert watched.complaints == []
    # Page, style, script, icon; on a machine that is slow by then also what keeps it fresh.
    assert len(set(watched.requests) - {f"{site.url}fragments/status"}) == 4
    assert all(url.startswith(site.url) for url in watched.requests)
    watched.page.close()


def test_its_structure_can_be_followed_without_seeing_it(browser: Browser, site: Site) -> None:
    page = open_page(browser, site.url).page

    levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("table:not(:has(> caption))").count() == 0
    assert page.locator("tbody tr:not(:has(> th[scope=row]))").count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the status"
    page.close()


def test_a_publish_appears_by_itself_and_nothing_else_is_touched(
    browser: Browser, site: Site, published: PublishedRepository
) -> None:
    watched = open_page(browser, site.url)
    page = watched.page
    page.clock.install()
    page.reload()
    page.evaluate("for (const section of document.querySelectorAll('section')) section.isOld = true")
    published.publish("2.0", "b9", product="kiosk", channel="stable")

    page.clock.run_for(11_000)
    page.locator("#releases tbody tr").nth(4).wait_for()

    assert page.locator("#summary dd").nth(2).inner_text() == "5"
    old = page.evaluate("[...document.querySelectorAll('section')].filter(one => one.isOld).map(one => one.id)")
    assert old == ["reports"]
    assert watched.complaints == []
    page.close()


def test_a_server_that_stops_answering_is_said_in_words(browser: Browser, site: Site) -> None:
    page = open_page(browser, site.url).page
    page.clock.install()
    page.reload()

    def refuse(route: Route) -> None:
        route.abort()

    page.route("**/fragments/status", refuse)
    page.clock.run_for(11_000)
    page.get_by_text("The server does not answer").wait_for()
    assert page.locator("#releases tbody tr").count() >= 4
    page.unroute("**/fragments/status")
    page.clock.run_for(11_000)
    expect(page.locator("#refresh-state")).to_have_text("")
    page.close()


def test_an_empty_repository_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    empty = PublishedRepository(tmp_path / "empty", products=("weather",))
    settings = ServerSettings.of_repository(empty.directory)
    with running(create_app(settings, clock=empty.clock)) as site:
        watched = open_page(browser, site.url, width=375)
        text = watched.page.locator("main").inner_text()
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 375
        assert watched.complaints == []
        watched.page.close()

    assert "overhaul publish IMAGE" in text
    assert f'url = "{site.url}api/v1/reports"' in text
