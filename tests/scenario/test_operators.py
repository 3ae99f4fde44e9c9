"""The dashboard in a real browser: signing in, changing a channel so that a real device follows, and being refused.

The desk is a process of its own, as it is in production, and so is the command line. Only the time of the server is
moved where a session has to end, and only the restart of the device is simulated.
"""

import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.asgi import Site, running
from tests.browser import POOR_CONTRAST, chromium, open_page
from tests.fleet import RealDevice, RealRepository, release_id, small_image
from tests.waiting import PATIENCE_S

from overhaul.agent.checking import check
from overhaul.agent.confirming import confirm
from overhaul.agent.updating import update
from overhaul.policy.rollout import Rollout
from overhaul.policy.selection import Hold, Offer, UpToDate
from overhaul.progress import Silence
from overhaul.publishing.policies import recall, set_rollout
from overhaul.server.app import create_app
from overhaul.server.database.engine import Database
from overhaul.server.operators.accounts import Operators, Role
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.guessing import PER_ACCOUNT
from overhaul.server.settings import ServerSettings

PASSWORD = "the rain in Spain stays mainly"
SIZE = 1 << 20


@dataclass
class World:
    """A repository with operators, its desk, and a server whose clock can be moved."""

    directory: Path
    repository: RealRepository
    ahead_s: float = 0.0
    #: Where the clock stands, or None while it goes on.
    stopped_at: float | None = None
    site: Site = field(default_factory=lambda: Site(0))
    accounts: int = 0

    def clock(self) -> float:
        return (time.time() if self.stopped_at is None else self.stopped_at) + self.ahead_s

    def command(self, *words: str, given: str = "") -> str:
        """Run a command of the product on the repository."""
        return subprocess.run(
            [sys.executable, "-m", "overhaul", *words, "--repository", str(self.repository.directory)],
            input=given, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def account(self, role: str = "operator") -> str:
        """Make an account nobody used before."""
        self.accounts += 1
        name = f"{role}-{self.accounts}"
        database = Database(ServerSettings.of_repository(self.repository.directory).database_url)
        Operators(database).add(name, role=Role(role), password=PASSWORD)
        database.close()
        return name

    def percent(self, version: str, *, channel: str = "stable") -> float | None:
        """Return what the signed policy opens a release to; None for all devices."""
        policy = self.repository.opened.published().policies[f"weather/policy/{channel}.json"]
        entry = policy.entry(release_id(version))
        assert entry is not None
        return None if entry.rollout is None else entry.rollout.percent

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.repository.directory / "server/audit.jsonl")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("operators")
    repository = RealRepository(directory / "repository")
    settings = directory / "repository/overhaul.toml"
    switched_on = re.sub(r"(\[server.operators\]\n#.*\n)enabled = false", r"\1enabled = true", settings.read_text())
    assert switched_on != settings.read_text()
    settings.write_text(switched_on)
    repository = RealRepository(directory / "repository")
    for version, channel in (("1.0", "stable"), ("1.1", "beta"), ("1.2", "beta")):
        repository.publish(small_image(directory / f"{version}.img", version), version, channel=channel)
    made = World(directory, repository)
    command = [sys.executable, "-m", "overhaul", "operator", "desk", "--repository", str(repository.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as desk:
        assert desk.stdout is not None
        assert desk.stdout.readline().startswith("The desk answers at ")
        with running(create_app(ServerSettings.of_repository(repository.directory), clock=made.clock)) as site:
            made.site = site
            yield made
        desk.terminate()
        assert desk.wait() == 0


@pytest.fixture(autouse=True)
def _server_and_desk_agree_on_the_time(world: World) -> Iterator[None]:
    yield
    world.ahead_s, world.stopped_at = 0.0, None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def _signed_in(browser: Browser, world: World, name: str, *, width: int = 1280, dark: bool = False) -> Page:
    page = open_page(browser, f"{world.site.url}fleet", width=width, dark=dark).page
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
    page.wait_for_load_state()
    return page


def _release_url(world: World, version: str, channel: str) -> str:
    return (
        f"{world.site.url}fleet/release?product=weather&channel={channel}&variant=lite&arch=amd64"
        f"&version={version}&build_id=b{version}"
    )


def test_a_device_follows_what_an_operator_promotes_pauses_resumes_and_recalls(browser: Browser, world: World) -> None:
    name = world.account()
    device = RealDevice.make(
        world.directory / "device",
        url=world.site.url,
        root=world.repository.root,
        image=world.directory / "1.0.img",
        version="1.0",
        slot_size=SIZE,
    )
    assert isinstance(check(device.device).decision, UpToDate)
    page = _signed_in(browser, world, name)

    page.goto(_release_url(world, "1.1", "beta"))
    page.get_by_label("Into stable, open to percent of its devices").fill("100")
    page.get_by_role("button", name="Review the promotion to stable").click()
    assert "100 % of the devices of this channel" in page.locator("#exposed").inner_text()
    assert page.locator("#words").inner_text() == "not in the channel → open to all"
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_role("status")).to_contain_text("Done.")
    assert isinstance(check(device.device).decision, Offer)

    page.get_by_role("button", name="Review the pause").click()
    assert page.locator("#exposed").inner_text().startswith("No device.")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("Done.")
    assert world.percent("1.1") == 0
    assert isinstance(check(device.device).decision, Hold)

    page.get_by_label("Part of the devices, in percent").fill("100")
    page.get_by_role("button", name="Review…", exact=True).click()
    page.get_by_role("button", name="Set the rollout").click()
    expect(page.get_by_role("status")).to_contain_text("Done.")
    assert world.percent("1.1") is None
    update(device.device, progress=Silence())
    device.boot.simulate_boot()
    confirm(device.device)
    assert device.booted_bytes(SIZE) == (world.directory / "1.1.img").read_bytes()

    page.get_by_label("Reason").fill("It loses the network.")
    page.get_by_label("Devices that run it may go back").check()
    page.get_by_role("button", name="Review the recall").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Recall 1.1?")
    page.get_by_role("button", name="Recall").click()
    assert "/fleet/review" in page.url, "the box that says it cannot be taken back must be ticked first"
    page.get_by_label("I know that this cannot be taken back").check()
    page.get_by_role("button", name="Recall").click()
    expect(page.get_by_role("status")).to_contain_text("Done.")
    decision = check(device.device).decision
    assert isinstance(decision, Offer)
    assert (decision.entry.version, decision.goes_back) == ("1.0", True)

    page.goto(f"{world.site.url}fleet/audit")
    acts = page.locator("tbody tr").all_inner_texts()
    assert [re.split(r"\s+", act)[4] for act in acts[:5]] == ["recall", "rollout", "pause", "promote", "login"]
    assert all(name in act for act in acts[:5])
    assert "open to all → recalled: It loses the network" in acts[0]
    assert "none was changed" in page.locator(".notice.good").inner_text()
    page.close()


def test_a_review_is_worth_nothing_once_the_policy_moved(browser: Browser, world: World) -> None:
    page = _signed_in(browser, world, world.account())
    page.goto(_release_url(world, "1.2", "beta"))
    page.get_by_label("Part of the devices, in percent").fill("40")
    page.get_by_role("button", name="Review…", exact=True).click()
    set_rollout(world.repository.opened, release_id("1.2"), channel="beta", rollout=Rollout(percent=7))

    page.get_by_role("button", name="Set the rollout").click()

    expect(page.get_by_role("alert")).to_contain_text("was changed meanwhile")
    assert world.percent("1.2", channel="beta") == 7
    assert "was changed meanwhile" in world.audit.recent(limit=1)[0].result
    page.get_by_role("link", name="Look again").click()
    assert page.get_by_label("Part of the devices, in percent").input_value() == "7"
    page.close()


def test_whoever_promotes_what_devices_halted_elsewhere_is_told_so(browser: Browser, world: World) -> None:
    halted = Rollout(percent=0, halted="6 of 86 updates failed")
    set_rollout(world.repository.opened, release_id("1.2"), channel="beta", rollout=halted)
    page = _signed_in(browser, world, world.account())
    page.goto(_release_url(world, "1.2", "beta"))
    page.get_by_role("button", name="Review the promotion to stable").click()

    warning = page.locator("#warning").inner_text()

    assert warning == "In beta it was halted by what devices reported: 6 of 86 updates failed."
    set_rollout(world.repository.opened, release_id("1.2"), channel="beta", rollout=Rollout(percent=3))
    page.close()


def test_a_viewer_looks_and_changes_nothing(browser: Browser, world: World) -> None:
    page = _signed_in(browser, world, world.account("viewer"))
    page.goto(_release_url(world, "1.2", "beta"))
    assert page.get_by_role("button").all_inner_texts() == ["Sign out"]
    before = world.percent("1.2", channel="beta")

    refused = page.request.post(
        f"{world.site.url}fleet/act",
        form=_act(page, world, percent="99"),
        headers={"sec-fetch-site": "same-origin"},
    )

    assert refused.status == 403
    assert "may look and not change" in refused.text()
    assert world.percent("1.2", channel="beta") == before
    assert "may look and not change" in world.audit.recent(limit=1)[0].result
    page.close()


def _act(page: Page, world: World, *, percent: str) -> dict[str, str | float | bool]:
    """Return what the form of an act sends, with the token of the page's session."""
    policy = world.repository.opened.published().policies["weather/policy/beta.json"]
    return {
        "form_token": page.locator("input[name=form_token]").first.input_value(),
        "kind": "rollout", "product": "weather", "channel": "beta", "variant": "lite", "arch": "amd64",
        "version": "1.2", "build_id": "b1.2", "percent": percent, "revision": str(policy.revision),
    }  # fmt: skip


def test_forms_of_other_pages_and_without_their_token_are_refused(browser: Browser, world: World) -> None:
    page = _signed_in(browser, world, world.account())
    page.goto(_release_url(world, "1.2", "beta"))
    form = _act(page, world, percent="98")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (
        "__Host-overhaul", True, True, "Strict",
    )  # fmt: skip
    session = {"cookie": f"{cookie['name']}={cookie['value']}"}
    before = world.percent("1.2", channel="beta")

    def send(headers: dict[str, str], **changes: str) -> httpx2.Response:
        fields = {name: str(value) for name, value in {**form, **changes}.items()}
        return httpx2.post(f"{world.site.url}fleet/act", data=fields, headers=headers, timeout=PATIENCE_S)

    for attempt in (
        send(session, form_token=""),
        send(session, form_token="0" * 64),
        send({**session, "sec-fetch-site": "cross-site"}),
        send({**session, "sec-fetch-site": "same-site"}),
        send({**session, "content-type": "text/plain"}),
    ):
        assert attempt.status_code == 403
    assert send({}).headers["location"].startswith("/login")
    assert world.percent("1.2", channel="beta") == before
    assert send(session).headers["location"].endswith("said=done"), "the same form is taken when nothing is wrong"
    assert world.percent("1.2", channel="beta") == 98
    page.close()


def test_guessing_ends_after_a_few_attempts_whoever_the_account_belongs_to(browser: Browser, world: World) -> None:
    name = world.account()
    page = open_page(browser, f"{world.site.url}login").page
    # However long the attempts take, the minutes to wait are those from the first one.
    world.stopped_at = time.time()

    def attempt(password: str, *, account: str = name) -> str:
        page.get_by_label("Name").fill(account)
        page.get_by_label("Password").fill(password)
        with page.expect_navigation():
            page.get_by_role("button", name="Sign in").click()
        return page.get_by_role("alert").inner_text()

    assert {attempt(f"wrong guess {number}") for number in range(PER_ACCOUNT)} == {"Name or password is wrong."}
    assert "Too many attempts. Try again in 15 minutes." in attempt(PASSWORD)
    assert attempt(PASSWORD, account="nobody-of-that-name") == "Name or password is wrong."
    assert world.audit.recent(limit=1)[0].operator == "nobody-of-that-name"
    page.close()

    world.ahead_s += 15 * 60 + 1
    _signed_in(browser, world, name).close()


def test_sessions_end_unused_in_any_case_with_a_new_password_and_when_signed_out(
    browser: Browser, world: World
) -> None:
    name = world.account()

    def is_signed_in(page: Page) -> bool:
        page.goto(f"{world.site.url}fleet")
        return "/login" not in page.url

    page = _signed_in(browser, world, name)
    world.ahead_s += 29 * 60
    assert is_signed_in(page)
    world.ahead_s += 31 * 60
    assert not is_signed_in(page)

    page = _signed_in(browser, world, name)
    for _ in range(12 * 3):
        assert is_signed_in(page)
        world.ahead_s += 20 * 60
    assert not is_signed_in(page), "a session of 12 hours ends however much it is used"

    page = _signed_in(browser, world, name)
    world.command("operator", "password", name, "--password-stdin", given=PASSWORD)
    assert not is_signed_in(page)

    page = _signed_in(browser, world, name)
    (cookie,) = page.context.cookies()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    kept = {"cookie": f"{cookie['name']}={cookie['value']}"}
    answer = httpx2.get(f"{world.site.url}fleet", headers=kept, timeout=PATIENCE_S)
    assert answer.headers["location"].startswith("/login"), "a stolen cookie is worth nothing after signing out"
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_every_page_fits_is_readable_and_loads_nothing_from_elsewhere(
    browser: Browser, world: World, width: int, dark: bool
) -> None:
    name = world.account()
    watched = open_page(browser, f"{world.site.url}fleet", width=width, dark=dark)
    page = watched.page

    def is_well(what: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width, what
        assert page.evaluate(POOR_CONTRAST) == [], what
        assert page.evaluate(_UNNAMED) == [], what
        levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(one => Number(one.tagName[1]))")
        assert levels[0] == 1, what
        assert all(after - before <= 1 for before, after in pairwise(levels)), what

    is_well("login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
    # What still comes in would be counted as broken off by the next page.
    page.wait_for_load_state()
    for summary in page.locator("summary").all():
        summary.click()
    is_well("fleet")
    page.goto(_release_url(world, "1.2", "beta"))
    is_well("release")
    page.get_by_label("Later steps").fill("2030-01-01 10:00 99\n2030-01-02 all")
    page.get_by_label("Part of the devices").fill("98.5")
    page.get_by_role("button", name="Review…", exact=True).click()
    page.locator("summary").click()
    page.wait_for_load_state()
    is_well("review")
    assert "--step 2030-01-02T00:00:00Z=100" in page.locator("code.command").inner_text()
    page.goto(f"{world.site.url}fleet/audit")
    is_well("audit")

    assert watched.complaints == []
    assert all(url.startswith(world.site.url) for url in watched.requests)
    page.close()


#: Fields, buttons, links and pictures that nobody who does not see them could tell, and ids that stand twice.
_UNNAMED = """
() => {
  const named = (one) => (one.getAttribute("aria-label") || one.innerText || one.textContent || "").trim()
    || [...(one.labels || [])].some((label) => label.innerText.trim())
    || (one.getAttribute("aria-labelledby") || "").split(" ").some((id) => id && document.getElementById(id));
  const found = [...document.querySelectorAll("input:not([type=hidden]),select,textarea,button,a,svg[role=img]")]
    .filter((one) => !named(one)).map((one) => one.outerHTML.slice(0, 80));
  const bare = "img:not([alt]),table:not(:has(> caption)),svg:not([role=img]):not([aria-hidden])";
  found.push(...[...document.querySelectorAll(bare)].map((one) => one.outerHTML.slice(0, 80)));
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  found.push(...ids.filter((id, at) => ids.indexOf(id) !== at));
  return found;
}
"""


def test_it_can_be_used_by_keyboard_alone(browser: Browser, world: World) -> None:
    name = world.account()
    page = open_page(browser, f"{world.site.url}login").page
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Password")).to_be_focused()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
    page.wait_for_load_state()

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.innerText || document.activeElement.id || '').trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
        if "1.2" in reached[-1]:
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("1.2"))
    page.close()


def test_plots_show_what_happened_and_tell_it_in_words(browser: Browser, world: World) -> None:
    for number, outcome in enumerate(("confirmed", "confirmed", "failed", "rolled-back")):
        report = (
            f'{{"report_id": "{number:032x}", "product": "weather", "variant": "lite", "arch": "amd64", '
            f'"channel": "beta", "from_version": "1.0", "from_build_id": "b1.0", "to_version": "1.1", '
            f'"to_build_id": "b1.1", "outcome": "{outcome}"'
            + (', "error": "UnreachableError"' if outcome == "failed" else "")
            + "}"
        )
        assert world.site.ask("/api/v1/reports", method="POST", body=report.encode()).status == 202
    page = _signed_in(browser, world, world.account())
    page.goto(f"{world.site.url}fleet?period=24h&product=weather&channel=beta")

    health = page.get_by_role("img", name="Device reports by outcome over time")
    assert health.locator("desc").text_content() == "In this time: 2 confirmed, 1 rolled back, 1 failed."
    assert health.locator("rect.fill").count() >= 3
    assert page.get_by_role("row", name="UnreachableError failed").get_by_role("cell").inner_text() == "1"
    assert "at least 2 devices" in page.locator("main").inner_text()
    page.goto(f"{world.site.url}fleet?period=24h&product=weather&channel=stable")
    assert page.get_by_text("No device reported an update in this time.").is_visible()
    page.close()


def test_without_a_desk_the_page_gives_the_command(browser: Browser, world: World, tmp_path: Path) -> None:
    settings = ServerSettings.of_repository(world.repository.directory)
    assert settings.operators is not None
    name = world.account()
    twin = World(world.directory, world.repository)
    apart = dataclasses.replace(settings, operators=dataclasses.replace(settings.operators, desk=tmp_path / "nobody"))
    with running(create_app(apart, clock=twin.clock)) as site:
        twin.site = site
        page = _signed_in(browser, twin, name)
        page.goto(_release_url(twin, "1.2", "beta"))
        assert "The desk is not running" in page.get_by_role("status").inner_text()
        page.get_by_role("button", name="Review the pause").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Pause 1.2?")
        assert page.get_by_role("button").all_inner_texts() == ["Sign out"]
        assert (
            page.locator("code.command")
            .last.inner_text()
            .startswith("overhaul channel rollout weather/lite/amd64/1.2/b1.2 0 --channel beta --repository ")
        )
        refused = page.request.post(f"{site.url}fleet/act", form=_act(page, twin, percent="3"))
        assert refused.status == 503
        assert "start `overhaul operator desk`" in refused.text()
        page.close()


def test_a_release_recalled_meanwhile_cannot_be_opened_again(browser: Browser, world: World) -> None:
    image = small_image(world.directory / "1.3.img", "1.3")
    world.repository.publish(image, "1.3", channel="dev")
    page = _signed_in(browser, world, world.account())
    page.goto(_release_url(world, "1.3", "dev"))
    recall(world.repository.opened, release_id("1.3"), channel="dev", reason="It is bad.")

    page.get_by_role("button", name="Review…", exact=True).click()

    assert "was recalled (It is bad)" in page.get_by_role("alert").inner_text()
    page.goto(_release_url(world, "1.3", "dev"))
    assert page.get_by_role("button").all_inner_texts() == ["Sign out"]
    page.close()
