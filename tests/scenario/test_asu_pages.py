"""The firmware and operator pages in a real browser, and without a script."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.asgi import Site, running
from tests.asu_world import BOARD, STABLE, TARGET, World, asu_world, failed
from tests.browser import PATIENCE_MS, chromium

from overhaul.builds.results import FailureKind, Phase


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with asu_world(tmp_path, allow_defaults=True) as made:
        yield made


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with running(world.app) as running_site:
        yield running_site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def complaints() -> list[str]:
    return []


def open_page(browser: Browser, complaints: list[str], *, width: int = 1280, script: bool = True) -> Page:
    page = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    return page


def test_a_person_finds_a_device_chooses_packages_and_downloads(
    browser: Browser, site: Site, world: World, complaints: list[str]
) -> None:
    page = open_page(browser, complaints)
    page.goto(f"{site.url}firmware")
    # Whoever goes on while the page still searches breaks that request off, which is a complaint.
    with page.expect_request_finished(lambda request: "q=archer" in request.url):
        page.get_by_label("Device", exact=True).press_sequentially("archer")
    page.get_by_role("link", name="TP-Link Archer C7 v2").click()
    assert page.locator("h1").inner_text() == "TP-Link Archer C7 v2"
    packages = page.get_by_label("Packages", exact=True)
    assert packages.input_value() == "base-files busybox dnsmasq kmod-ath10k-ct"

    with page.expect_request_finished(lambda request: "q=luci-app" in request.url):
        page.get_by_label("Find a package").press_sequentially("luci-app")
    offer = page.get_by_role("button", name="luci-app-statistics")
    expect(offer.locator("xpath=..")).to_contain_text("19.0 kB")
    offer.click()
    page.get_by_label("Script run at the first boot").fill("uci set a.b=c")
    page.get_by_role("button", name="Build").click()
    expect(page.locator("#now")).to_contain_text("It is the next.")
    assert re.search(r"/firmware/build/[0-9a-f]{64}$", page.url)
    (build,) = world.queue.recent(limit=2)
    assert set(build.recipe.packages) == {"base-files", "busybox", "dnsmasq", "kmod-ath10k-ct", "luci-app-statistics"}
    assert build.recipe.defaults == "uci set a.b=c"

    lease = world.queue.lease(worker="w", builders=("openwrt",))
    assert lease is not None
    lease = world.queue.renew(lease, phase=Phase.BUILDING_IMAGE)
    world.queue.append_log(lease, "compressing <the> image\n")
    expect(page.locator("#now")).to_contain_text("Building: building image.")
    expect(page.locator(".log")).to_have_text("compressing <the> image\n")
    world.queue.give_back(lease)
    world.build_next()
    expect(page.locator("#now")).to_contain_text("Done.")
    with page.expect_download() as download:
        page.get_by_role("link", name="openwrt-squashfs-sysupgrade.bin").click()
    assert Path(download.value.path()).read_bytes().startswith(b"image openwrt-squashfs-sysupgrade.bin")
    assert page.locator("#share").get_attribute("href") == f"/firmware/build/{build.name}"
    assert complaints == []
    page.context.close()


def test_the_basics_work_without_a_script(browser: Browser, site: Site, world: World, complaints: list[str]) -> None:
    page = open_page(browser, complaints, width=375, script=False)
    page.goto(f"{site.url}firmware")
    page.get_by_label("Device", exact=True).fill("carambola")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name="8devices Carambola 2").click()
    page.get_by_label("Packages", exact=True).fill("base-files vim")
    page.get_by_role("button", name="Build").click()
    assert "It is the next." in page.locator("#now").inner_text()
    world.build_next()
    page.reload()
    assert page.get_by_role("link", name="openwrt-squashfs-sysupgrade.bin").is_visible()
    assert complaints == []
    page.context.close()


def test_an_impossible_selection_is_explained_and_keeps_what_was_typed(
    browser: Browser, site: Site, world: World, complaints: list[str]
) -> None:
    page = open_page(browser, complaints)
    page.goto(f"{site.url}firmware/device/{STABLE}/{TARGET}/{BOARD}")
    page.get_by_label("Packages", exact=True).fill("vim firewall")
    page.get_by_role("button", name="Build").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("firewall: it does not exist for ath79/generic in 23.05.5; ask for firewall4 instead")
    assert page.get_by_label("Packages", exact=True).input_value() == "vim firewall"
    assert world.queue.waiting() == 0
    page.context.close()


@pytest.mark.parametrize("width", [320, 1280])
def test_every_page_fits_the_screen_and_loads_nothing_from_elsewhere(
    browser: Browser, site: Site, world: World, complaints: list[str], width: int
) -> None:
    name = world.post("/api/v1/build", _request()).json["request_hash"]
    world.build_next()
    world.post("/api/v1/build", _request("htop"))
    world.build_next(failure=failed(FailureKind.BUILD_FAILED, "a " + "very-long-word" * 20))
    world.post("/api/v1/build", _request("tmux"))
    page = open_page(browser, complaints, width=width)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    device = f"firmware/device/{STABLE}/{TARGET}/{BOARD}"
    for path in ("firmware", "firmware?q=archer", device, f"firmware/build/{name}", "builds"):
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.locator("h1").count() == 1
    assert page.locator(".plot canvas").is_visible()
    assert all(url.startswith((site.url, "data:")) for url in asked)
    assert complaints == []
    page.context.close()


def test_the_operator_sees_queue_failures_popularity_and_storage(
    browser: Browser, site: Site, world: World, complaints: list[str]
) -> None:
    world.post("/api/v1/build", _request())
    world.build_next()
    world.post("/api/v1/build", _request("htop", defaults="echo secret"))
    world.build_next(failure=failed(FailureKind.TOO_BIG, "Selected packages exceed device storage"))
    world.post("/api/v1/build", _request("tmux", defaults="echo secret"))
    page = open_page(browser, complaints)
    page.goto(f"{site.url}builds")
    text = page.locator("main").inner_text()
    assert "Selected packages exceed device storage" in text
    assert "vim" in text
    assert TARGET in text
    assert page.locator(".tiles dd").all_inner_texts()[:4] == ["1", "0", "0", "1"]
    html = page.content()
    assert "secret" not in html
    assert not re.search(r"[0-9a-f]{64}", html), "a page that everybody sees must not name a build"
    assert complaints == []
    page.context.close()


def _request(package: str = "vim", **changes: object) -> dict[str, object]:
    return {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": [package], **changes}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/firmware?q=%00%ff<script>&version=x", 200),
        ("/firmware?" + "&".join(f"a{number}=b" for number in range(50)), 200),
        (f"/firmware/device/{STABLE}/{TARGET}/nothing", 404),
        ("/firmware/device/a/b/c/d", 404),
        ("/firmware/build/" + "0" * 64, 404),
        ("/firmware/build/x", 404),
        ("/firmware/assets/../pages.py", 404),
        ("/firmware/assets/x", 404),
        ("/firmware/packages?q=vi&version=x&target=y", 200),
    ],
)
def test_pages_answer_whatever_is_asked(world: World, path: str, status: int) -> None:
    answer = world.ask(path)
    assert answer.status == status
    assert b"<script>&" not in answer.body
    if "assets" not in path:
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_what_is_typed_is_never_markup(world: World) -> None:
    evil = "<img src=x onerror=alert(1)>"
    body = urlencode({"version": STABLE, "target": TARGET, "profile": BOARD, "packages": evil, "defaults": evil})
    answer = world.ask("/firmware/build", method="POST", body=body.encode())
    assert answer.status == 422
    assert b"<img" not in answer.body
    assert world.ask(f"/firmware?q={evil}").body.count(b"<img") == 0
