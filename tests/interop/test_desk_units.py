"""The shipped units of desk and web server under a real systemd, in all their confinement, the policy key in SoftHSM.

A container boots this machine's /usr. Drop-ins only say where the program lies here, and what the units ask operators
to add for a token.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.fleet import PRODUCT, RealRepository, small_image
from tests.nspawn import switch_off
from tests.policy_token import LABEL, MODULE, PIN, put_policy_key_into_token, softhsm_configuration
from tests.tools import need

from overhaul.policy.document import Policy

pytestmark = [pytest.mark.xdist_group("desk-units"), pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
PASSWORD = "the rain in Spain stays mainly"
SERVER, DESK, GROUP = 64001, 64002, 64001
#: Longer than a start takes on a busy machine.
_PATIENCE_S = 500
# Its interpreter was built for another place.
_ENVIRONMENT = "Environment=PYTHONPATH=/opt/src:/opt/site PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/opt/python/lib"
_RUN = "/opt/python/bin/python3 -m overhaul"
_DROP_INS = {
    "overhaul-server": f"{_RUN} serve --repository /srv/overhaul --host 127.0.0.1 --port 8780",
    "overhaul-desk": f"{_RUN} operator desk --repository /srv/overhaul",
}
_TARGET = """[Unit]
Requires=basic.target
Wants=overhaul-server.service overhaul-desk.service check.service
After=basic.target
AllowIsolate=yes
"""
_CHECK = f"""[Unit]
After=overhaul-server.service overhaul-desk.service
[Service]
Type=oneshot
{_ENVIRONMENT}
ExecStart=-/opt/python/bin/python3 /srv/check.py
ExecStart=-/bin/sh -c 'journalctl --no-pager -u overhaul-desk -u overhaul-server > /srv/journal'
ExecStopPost=/bin/systemctl --no-block poweroff
"""
#: Run inside: an operator signs in and opens the release to a quarter of the devices.
_QUESTIONS = """
import json, re, subprocess, time, urllib.parse, urllib.request
from overhaul.server.operators import door
from overhaul.server.operators.sessions import form_token

class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given): return None

def post(path, form, cookie, value):
    data = urllib.parse.urlencode({**form, door.FORM_TOKEN: form_token(value)}).encode()
    request = urllib.request.Request("http://127.0.0.1:8780/" + path, data, {"Cookie": f"{cookie}={value}"})
    try:
        return urllib.request.build_opener(Stay).open(request, timeout=120)
    except urllib.error.HTTPError as error:
        return error

def states():
    command = ["systemctl", "is-active", "overhaul-server", "overhaul-desk"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()

answers = {}
try:
    for _attempt in range(1200):
        if subprocess.run(["test", "-S", "/srv/overhaul/server/desk/socket"]).returncode == 0:
            break
        time.sleep(0.1)
    signed_in = post("login", {"name": "ada", "password": PASSWORD, "next": "/fleet"}, door.LOGIN_COOKIE, "x" * 43)
    told = "; ".join(signed_in.headers.get_all("set-cookie"))
    session = re.search(rf"{door.SESSION_COOKIE}=([^;]+)", told)[1]
    form = {"kind": "rollout", "product": PRODUCT, "channel": "stable", "variant": "lite", "arch": "amd64",
            "version": "1.0", "build_id": "b1.0", "percent": "25", "revision": str(REVISION)}
    done = post("fleet/act", form, door.SESSION_COOKIE, session)
    answers["act"] = done.headers.get("location") or done.read().decode()
    answers["states"] = states()
finally:
    with open("/srv/answers", "w") as stream:
        json.dump(answers, stream)
"""


def _system(root: Path) -> None:
    """Make the root of a system that has this machine's /usr."""
    for name in ("usr", "proc", "sys", "dev", "run", "tmp", "var", "root", "opt/python", "opt/src", "opt/site", "srv"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    (root / "etc/machine-id").write_text("uninitialized\n")
    shutil.copy("/etc/os-release", root / "etc")
    (root / "etc/passwd").write_text(
        f"root:x:0:0::/root:/bin/sh\noverhaul:x:{SERVER}:{GROUP}::/nonexistent:/bin/false\n"
        f"overhaul-desk:x:{DESK}:{GROUP}::/nonexistent:/bin/false\n"
    )
    (root / "etc/group").write_text(f"root:x:0:\noverhaul:x:{GROUP}:\n")
    for name, command in _DROP_INS.items():
        shutil.copy(PROJECT / f"deploy/systemd/{name}.service", units)
        place = units / f"{name}.service.d"
        place.mkdir()
        lines = ["[Service]", "ExecStart=", f"ExecStart={command}", _ENVIRONMENT]
        if name == "overhaul-desk":
            lines.append(f"Environment=PYKCS11LIB={MODULE} SOFTHSM2_CONF=/srv/token/softhsm2.conf")
        (place / "here.conf").write_text("\n".join(lines) + "\n")
    (units / "check.service").write_text(_CHECK)
    (units / "check.target").write_text(_TARGET)
    (units / "default.target").symlink_to("check.target")
    # There is no network to wait for.
    for name in ("systemd-networkd-wait-online", "systemd-networkd", "systemd-resolved", "dbus"):
        (units / f"{name}.service").symlink_to("/dev/null")


def _prepare(srv: Path) -> int:
    """Make a repository whose policies are signed by a key in a token; give everybody what is theirs.

    Returns the revision of the policy.
    """
    repository, token = srv / "overhaul", srv / "token"
    made = RealRepository(repository)
    settings = repository / "overhaul.toml"
    switched_on = re.sub(r"(\[server.operators\]\n#.*\n)enabled = false", r"\1enabled = true", settings.read_text())
    settings.write_text(switched_on)
    keys = made.opened.keys_directory
    pin = keys / f"{LABEL}.pin"
    pin.write_text(PIN)
    pin.chmod(0o600)
    (token / "tokens").mkdir(parents=True)
    (srv / "here.conf").write_text(softhsm_configuration(f"{token}/tokens"))
    (token / "softhsm2.conf").write_text(softhsm_configuration("/srv/token/tokens"))
    environment = {**os.environ, "PYKCS11LIB": MODULE, "SOFTHSM2_CONF": str(srv / "here.conf")}

    def run(*command: str, given: str = "") -> str:
        done = subprocess.run(command, input=given, env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    def overhaul(*words: str, given: str = "") -> str:
        return run(sys.executable, "-m", "overhaul", *words, "--repository", str(repository), given=given)

    put_policy_key_into_token(run, overhaul, product=PRODUCT)
    image = small_image(srv / "1.0.img", "1.0", size=256 * 1024)
    names = (f"--product={PRODUCT}", "--variant=lite", "--arch=amd64", "--channel=stable")
    overhaul("publish", str(image), *names, "--version=1.0", "--build-id=b1.0")
    # As the units say it.
    server = repository / "server"
    server.mkdir(exist_ok=True)
    for place in (repository, keys, token):
        for path in (place, *place.rglob("*")):
            os.chown(path, DESK, GROUP)
            if place is not repository:
                path.chmod(path.stat().st_mode & 0o700)
    os.chown(server, SERVER, GROUP)
    server.chmod(0o2770)
    overhaul("operator", "add", "ada", "--role=operator", "--password-stdin", given=PASSWORD)
    return _policy(repository).revision


def _policy(repository: Path) -> Policy:
    return RealRepository(repository).opened.published().policies[f"{PRODUCT}/policy/stable.json"]


def _boot(root: Path) -> None:
    """Boot the system, and wait until it has switched itself off."""
    python = Path(sys.base_prefix)
    places = {python: "/opt/python", PROJECT / "src": "/opt/src", Path(sysconfig.get_paths()["purelib"]): "/opt/site"}
    bound = [f"--bind-ro={there}:{here}" for there, here in places.items()]
    quietly = ["--quiet", "--register=no", "--keep-unit", "--console=pipe", f"--machine=overhaul-desk-{os.getpid()}"]
    command = [need("systemd-nspawn"), "--boot", *quietly, "--private-network", f"--directory={root}", "--bind-ro=/usr"]
    command += bound
    with (root.parent / "console").open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            process.wait(_PATIENCE_S)
        finally:
            switch_off(process)


def test_an_act_on_the_dashboard_passes_through_all_confinement(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _system(root)
    revision = _prepare(root / "srv")
    head = f"PRODUCT, PASSWORD, REVISION = {PRODUCT!r}, {PASSWORD!r}, {revision}"
    (root / "srv/check.py").write_text(head + _QUESTIONS)

    _boot(root)

    journal = root / "srv/journal"
    told = journal.read_text() if journal.exists() else (tmp_path / "console").read_text(errors="replace")
    answers = json.loads((root / "srv/answers").read_text())
    assert answers["states"] == ["active", "active"], told
    assert answers["act"].endswith("said=done"), (answers, told)
    policy = _policy(root / "srv/overhaul")
    [entry] = policy.entries
    assert policy.revision == revision + 1
    assert entry.rollout is not None
    assert entry.rollout.percent == 25
    # Whoever made it, both write it and nobody else reads it.
    for name in ("overhaul.sqlite3", "audit.jsonl"):
        assert (root / "srv/overhaul/server" / name).stat().st_mode & 0o777 == 0o660
