"""The desk, the web server and everybody else as three accounts of one machine, the policy key in a PKCS#11 token.

Accounts and rights are made as the shipped units say, in a mount namespace; the programs are started from the lines of
the units. SoftHSM is the token.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import httpx2
import pytest
from tests.deployed_asu import DEPLOY, Machine, Unit, machine
from tests.fleet import small_image
from tests.policy_token import LABEL, MODULE, PIN, put_policy_key_into_token, softhsm_configuration
from tests.ports import reserved_port
from tests.waiting import until

from overhaul.server.operators import door
from overhaul.server.operators.sessions import form_token

pytestmark = pytest.mark.xdist_group("desk-accounts")

PASSWORD = "the rain in Spain stays mainly"
REPOSITORY, KEYS, TOKEN = "/srv/overhaul", "/srv/overhaul-keys", "/srv/token"
SOCKET = f"{REPOSITORY}/server/desk/socket"
PROGRAM = "/opt/overhaul/bin/overhaul"

_CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@dataclass
class World:
    """The machine, and the address of its web server."""

    machine: Machine
    url: str

    def overhaul(self, *words: str, account: str = "overhaul-desk", status: int = 0) -> str:
        """Run a command of the product on the repository as an account."""
        return self.become(account, PROGRAM, *words, "--repository", REPOSITORY, status=status)

    def become(self, account: str, *words: str, status: int = 0) -> str:
        """Run a program as an account."""
        group = "mallory" if account == "mallory" else "overhaul"
        who = ["setpriv", f"--reuid={account}", f"--regid={group}", "--clear-groups", "--inh-caps=-all"]
        environment = ["env", f"PYKCS11LIB={MODULE}", f"SOFTHSM2_CONF={TOKEN}/softhsm2.conf", "HOME=/nonexistent"]
        return self.machine.run(*who, *environment, *words, status=status)

    def policy(self) -> tuple[int, float]:
        """Return the policy's revision, and what it opens the release to, as the web server reads it."""
        listed = json.loads(self.overhaul("channel", "list", "--json", account="overhaul"))
        [policy] = [one["policy"] for one in listed if one["channel"] == "stable"]
        [entry] = policy["entries"]
        return policy["revision"], entry["rollout"]["percent"] if "rollout" in entry else 100


class Operator:
    """Somebody who signs in, without a browser."""

    def __init__(self, world: World, name: str) -> None:
        self._url = world.url
        login = door.new_login_cookie()
        form = {"name": name, "password": PASSWORD, "next": "/fleet"}
        answer = self._post("login", form, cookie=door.LOGIN_COOKIE, value=login)
        [self._session] = re.findall(
            rf"{door.SESSION_COOKIE}=([^;]+);", "\n".join(answer.headers.get_list("set-cookie"))
        )

    def set_rollout(self, percent: float, *, revision: int) -> str:
        """Open the release to a percentage; return where the answer leads, or what it says."""
        form = {
            "kind": "rollout", "product": "weather", "channel": "stable", "variant": "lite", "arch": "amd64",
            "version": "1.0", "build_id": "b1", "percent": f"{percent:g}", "revision": str(revision),
        }  # fmt: skip
        answer = self._post("fleet/act", form, cookie=door.SESSION_COOKIE, value=self._session)
        return str(answer.headers.get("location", answer.text))

    def _post(self, path: str, form: dict[str, str], *, cookie: str, value: str) -> httpx2.Response:
        fields = {**form, door.FORM_TOKEN: form_token(value)}
        return httpx2.post(f"{self._url}{path}", data=fields, headers={"cookie": f"{cookie}={value}"}, timeout=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("desk")
    small_image(directory / "1.0.img", "1.0", size=256 * 1024)
    with machine(directory) as made, ExitStack() as running:
        port = running.enter_context(reserved_port())
        world = World(made, f"http://127.0.0.1:{port}/")
        for line in (
            "mount -t tmpfs -o mode=0755 none /srv",
            # As the units say it.
            "adduser --quiet --system --group overhaul",
            "adduser --quiet --system --ingroup overhaul overhaul-desk",
            "adduser --quiet --system --group mallory",
        ):
            made.run(*line.split())
        made.run(PROGRAM, "init", REPOSITORY, "--demo-keys", "--product=weather")
        made.run("sed", "-i", r"/^\[server.operators\]/,/^enabled/s/^enabled = false/enabled = true/",
                 f"{REPOSITORY}/overhaul.toml")  # fmt: skip
        made.run("install", "-d", f"{REPOSITORY}/server", f"{TOKEN}/tokens")
        configuration = softhsm_configuration(f"{TOKEN}/tokens")
        made.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", configuration, f"{TOKEN}/softhsm2.conf")
        made.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", PIN, f"{KEYS}/{LABEL}.pin")
        made.run("chown", "-R", "overhaul-desk:overhaul", REPOSITORY)
        made.run("chown", "-R", "overhaul-desk:root", KEYS, TOKEN)
        made.run("chmod", "-R", "go-rwx", KEYS, TOKEN)
        made.run("chgrp", "-R", "overhaul", f"{REPOSITORY}/server")
        made.run("chmod", "-R", "g+rwX,o-rwx", f"{REPOSITORY}/server")
        made.run("chmod", "g+s", f"{REPOSITORY}/server")
        desk = partial(world.become, "overhaul-desk")
        put_policy_key_into_token(desk, world.overhaul, product="weather")
        image = "/srv/1.0.img"
        made.run("install", "-m", "0644", str(directory / "1.0.img"), image)
        names = ("--product=weather", "--variant=lite", "--arch=amd64", "--channel=stable")
        world.overhaul("publish", image, *names, "--version=1.0", "--build-id=b1")
        _leave_only_what_the_desk_needs(made)
        for role in ("operator", "viewer"):
            made.run("sh", "-c", f'printf %s "$1" | exec setpriv --reuid=overhaul-desk --regid=overhaul --clear-groups '
                     f"{PROGRAM} operator add {role} --role {role} --password-stdin --repository {REPOSITORY}",
                     "sh", PASSWORD)  # fmt: skip
        desk_unit, server_unit = (Unit.read(DEPLOY / f"systemd/overhaul-{name}.service") for name in ("desk", "server"))
        desk_unit.values["Environment"] += [f"PYKCS11LIB={MODULE}", f"SOFTHSM2_CONF={TOKEN}/softhsm2.conf"]
        for name, unit in (("desk", desk_unit), ("server", server_unit)):
            [line] = unit.values["ExecStart"]
            line = line.replace("/usr/bin/overhaul", PROGRAM).replace("--port 8780", f"--port {port}")
            running.enter_context(made.running(*unit.command(line), log=directory / f"{name}.log"))
        until((directory / "desk.log").read_text, lambda told: "The desk answers at" in told)
        until(lambda: _answers(world.url))
        yield world


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}login").status_code == 200
    except httpx2.TransportError:
        return False


def _leave_only_what_the_desk_needs(machine: Machine) -> None:
    """Take away all private keys in files but those of snapshot and timestamp."""
    held = machine.run("ls", KEYS).split()
    for name in held:
        if name.endswith(".pem") and not name.startswith(("snapshot", "timestamp")):
            machine.run("rm", f"{KEYS}/{name}")
    assert len(machine.run("ls", KEYS).split()) < len(held)


def test_what_an_operator_orders_is_signed_by_the_token_and_written_down(world: World) -> None:
    revision, _percent = world.policy()

    said = Operator(world, "operator").set_rollout(25, revision=revision)

    assert said.endswith("said=done"), said
    assert world.policy() == (revision + 1, 25)
    assert "Checked 1 releases" in world.overhaul("repository", "verify", account="overhaul")
    # Another web server may serve the same directory.
    assert world.become("mallory", "cat", f"{REPOSITORY}/store/public/metadata/timestamp.json")
    log = world.overhaul("operator", "audit", account="overhaul")
    assert "operator (127.0.0.1)  rollout" in log
    assert "chained and unchanged" in log


def test_a_viewer_is_refused_by_the_desk_itself(world: World) -> None:
    before = world.policy()

    said = Operator(world, "viewer").set_rollout(99, revision=before[0])

    assert "may look and not change" in said
    assert world.policy() == before


@pytest.mark.parametrize("account", ["overhaul", "mallory"])
def test_nobody_but_the_desk_reads_a_key_or_writes_the_repository(world: World, account: str) -> None:
    for command in (
        ("ls", KEYS),
        ("cat", f"{KEYS}/{LABEL}.pin"),
        ("ls", f"{TOKEN}/tokens"),
        ("touch", f"{REPOSITORY}/store/public/metadata/timestamp.json"),
        ("mkdir", f"{REPOSITORY}/store/public/mine"),
        ("touch", f"{REPOSITORY}/overhaul.toml"),
    ):
        assert world.become(account, *command, status=2 if command[0] == "ls" else 1) == ""
    before = world.policy()
    world.overhaul(
        "channel", "rollout", "weather/lite/amd64/1.0/b1", "77", "--channel=stable", account=account, status=7
    )
    assert world.policy() == before


def test_a_third_account_comes_to_neither_socket_nor_sessions_nor_audit_log(world: World) -> None:
    for path in (SOCKET, f"{REPOSITORY}/server/audit.jsonl", f"{REPOSITORY}/server"):
        assert world.become("mallory", "cat", path, status=1) == ""
    world.become("mallory", "/opt/overhaul/bin/python", "-c", _CONNECT, SOCKET, status=1)
    # The same, as one who may.
    world.become("overhaul", "/opt/overhaul/bin/python", "-c", _CONNECT, SOCKET)
