"""What deploy/ brings for attended sysupgrade, against the programs that read it, and the whole of it started.

One group: the machine that the role sets up is made once. Only the accounts' own start needs root.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.asu_world import BOARD, STABLE, Upstream
from tests.deployed_asu import DEPLOY, PROJECT, Machine, Unit, log_texts, machine
from tests.imagebuilder import TARGET, UPSTREAM, StandInUpstream
from tests.loopback import serving
from tests.ports import reserved_port, reserved_ports
from tests.tools import need
from tests.waiting import until, until_it_listens

from asu.__main__ import cli
from asu.configuration import load_configuration

pytestmark = [pytest.mark.xdist_group("asu-deployment"), pytest.mark.timeout(1800)]

_RECORDER = """
class Taker
  def method_missing(name, *given, **named)
    puts(([name] + given + named.values).join(" "))
    yield(Taker.new) if block_given?
    Taker.new
  end
end
module Vagrant
  def self.configure(version) = yield(Taker.new)
end
"""
UNITS = ("asu-server", "asu-signer", "asu-worker")


@pytest.mark.parametrize(("unit", "threshold"), [("asu-server", 15), ("asu-signer", 55), ("asu-worker", 70)])
def test_systemd_understands_every_line_of_the_units_and_finds_them_shut_in(
    unit: str, threshold: int, tmp_path: Path
) -> None:
    for name in UNITS:
        text = (DEPLOY / f"systemd/{name}.service").read_text()
        (tmp_path / f"{name}.service").write_text(re.sub(r"/opt/overhaul/bin/\w+", "/bin/true", text))
    path = tmp_path / f"{unit}.service"
    checked = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    judged = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", f"--threshold={threshold}", "--no-pager", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout


def test_the_worker_keeps_what_its_sandbox_needs_and_never_sees_the_key() -> None:
    worker = Unit.read(DEPLOY / "systemd/asu-worker.service").values
    # Each of these either sets NoNewPrivileges for an account or covers a part of /proc.
    forbidden = {"NoNewPrivileges", "RestrictNamespaces", "ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc",
                 "ProcSubset", "ProtectControlGroups", "SystemCallFilter", "PrivateDevices", "ProtectHostname",
                 "RestrictAddressFamilies", "LockPersonality", "MemoryDenyWriteExecute"}  # fmt: skip
    assert not forbidden & set(worker)
    assert worker["Delegate"] == ["memory pids"]
    assert worker["InaccessiblePaths"] == ["-/etc/asu/keys"]


def test_the_compose_file_is_accepted_and_all_it_names_exists() -> None:
    path = DEPLOY / "docker/compose.yaml"
    environment = {**os.environ, "ASU_DATABASE_PASSWORD": "secret"}
    accepted = subprocess.run(
        [need("docker-compose"), "-f", path, "config"], capture_output=True, text=True, check=False, env=environment
    )
    assert accepted.returncode == 0, accepted.stderr
    services: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    assert set(services) == {"database", "server", "signer", "worker"}

    stages = re.findall(r"^FROM .* AS (\w+)$", (DEPLOY / "docker/asu/Dockerfile").read_text(), re.MULTILINE)
    commands = {"run-signer": services["signer"]["command"], "run-worker": services["worker"]["command"]}
    for verb, command in commands.items():
        assert command == ["python", "-m", "asu", verb]
        assert verb in cli.commands
        assert CliRunner().invoke(cli, [verb, "--help"], obj=None).exit_code == 0
    for service in ("server", "signer", "worker"):
        build = services[service]["build"]
        assert (path.parent / build["context"]).resolve() == PROJECT
        assert (PROJECT / build["dockerfile"]).is_file()
        assert build["target"] in stages
        for volume in services[service]["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith("./") or source == "./asu/keys" or (path.parent / source).is_file()
    with_key = [name for name, service in services.items() if any("keys" in one for one in service["volumes"])]
    assert with_key == ["signer"]
    relaxed = [name for name, service in services.items() if "seccomp=unconfined" in service.get("security_opt", [])]
    assert relaxed == ["worker"]
    how_to = (PROJECT / "docs/how-to/build-images-on-demand.md").read_text()
    for option in services["worker"]["security_opt"]:
        assert f"- {option}\n" in how_to


def test_the_container_s_configuration_can_be_loaded(tmp_path: Path) -> None:
    for name in ("config.yml", "builds.toml"):
        (tmp_path / name).write_bytes((DEPLOY / "docker/asu" / name).read_bytes())
    configuration = load_configuration(tmp_path / "config.yml")
    assert configuration.works.settings.queue.database == "postgresql://asu@database/asu"
    compose = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    assert str(configuration.works.socket.parent) in compose["services"]["worker"]["volumes"][-1]
    assert str(configuration.works.socket.parent) in compose["services"]["signer"]["volumes"][-1]


def test_every_instruction_of_the_dockerfile_finds_its_files_and_packages() -> None:
    text = (DEPLOY / "docker/asu/Dockerfile").read_text().replace("\\\n", " ")
    parts = re.findall(r"--no-install-recommends([^&\n]*)", text)
    packages = {word for part in parts for word in part.split() if not word.startswith("-")}
    shown = subprocess.run(["apt-cache", "policy", *packages], capture_output=True, text=True, check=True).stdout
    assert packages <= {line.removesuffix(":") for line in shown.splitlines() if not line.startswith(" ")}
    assert "Candidate: (none)" not in shown
    [command] = re.findall(r"^CMD (\[.uvicorn.*)$", text, re.MULTILINE)
    assert json.loads(command)[1] == "asu:app"
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"server", "postgresql"} <= set(extras)


def test_the_vagrantfile_is_ruby_and_its_paths_exist() -> None:
    path = DEPLOY / "vagrant/Vagrantfile"
    checked = subprocess.run([need("ruby"), "-wc", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    # Vagrant itself is not here: what the file asks of it is recorded by an object that takes every call.
    asked = subprocess.run(["ruby", "-e", f"{_RECORDER}load {str(path)!r}"], capture_output=True, text=True, check=True)
    [playbook] = re.findall(r"^playbook= (.*)$", asked.stdout, re.MULTILINE)
    assert (path.parent / playbook).is_file()
    assert "forwarded_port 80 8080 127.0.0.1" in asked.stdout
    assert (path.parent / "../..").resolve() == PROJECT


# The role, run for real.


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A stand-in for OpenWrt's server: its catalogue and one ImageBuilder; yields address and public key file."""
    directory = tmp_path_factory.mktemp("upstream")
    builders = StandInUpstream()
    builders.put()
    catalogue = Upstream()
    catalogue.sign(builders.key)
    (directory / "upstream.pub").write_text(builders.key.public.text())
    with serving(directory) as server:
        server.files.update({path.removeprefix("/"): data for path, data in catalogue.files.items()})
        base = f"{UPSTREAM}/releases/{STABLE}/targets/{TARGET}"
        for url, data in builders.files.items():
            server.files[url.removeprefix(f"{UPSTREAM}/")] = data
        # One list for both: what the catalogue signs and what the ImageBuilder's archive is.
        sums = builders.files[f"{base}/sha256sums"] + catalogue.files[f"/releases/{STABLE}/targets/{TARGET}/sha256sums"]
        server.files[f"releases/{STABLE}/targets/{TARGET}/sha256sums"] = sums
        server.files[f"releases/{STABLE}/targets/{TARGET}/sha256sums.sig"] = builders.key.sign(sums).encode()
        yield server.url.rstrip("/"), str(directory / "upstream.pub")


@pytest.fixture(scope="module")
def deployed(upstream: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a machine to deploy to")
    for program in ("ansible-playbook", "signify-openbsd", "nginx", "bwrap", "make"):
        need(program)
    address, key = upstream
    with machine(tmp_path_factory.mktemp("machine")) as made:
        variables = json.dumps({"asu_upstream_url": address, "asu_upstream_keys": [key]})
        arguments = ["--extra-vars", variables]
        made.run("mkdir", "-p", "/etc/nginx/sites-enabled")
        done = made.play("--skip-tags=packages", *arguments)
        assert "failed=0" in done
        # A trial of all of it: what was done is not done again, and the rest would be.
        tried = made.play("--check", "--diff", "--extra-vars=asu_database_password=x", *arguments)
        assert "failed=0" in tried
        tasks = [part.partition("]") for part in tried.split("\nTASK [asu : ")[1:]]
        changed = {name for name, _bracket, said in tasks if "\nchanged: " in said}
        assert changed <= {"Install what the parts run on", "Install the program", "Install PostgreSQL"}, tried
        assert {"Install the program", "Make the database of that role", "Start"} <= {name for name, *_rest in tasks}
        yield made


def test_the_role_gives_each_account_what_it_needs_and_no_more(deployed: Machine) -> None:
    def rights(path: str) -> str:
        return deployed.run("stat", "--format=%U:%G %a", path).strip()

    assert rights("/etc/asu") == "root:asu 750"
    assert rights("/etc/asu/config.yml") == "root:asu 640"
    assert rights("/etc/asu/keys/builds.sec") == "asu-signer:root 600"
    assert rights("/var/lib/asu") == "asu:asu 2770"
    for account in ("asu", "asu-worker"):
        become = ["setpriv", f"--reuid={account}", "--regid=asu", "--clear-groups"]
        deployed.run(*become, "cat", "/etc/asu/config.yml")
        deployed.run(*become, "cat", "/etc/asu/keys/builds.sec", status=1)
    assert "asu-worker:1879048192:65536" in deployed.run("cat", "/etc/subuid")
    settings = deployed.run("cat", "/etc/asu/builds.toml")
    assert tomllib.loads(settings)["openwrt"]["usign_keys"] == ["upstream.pub"]


def test_the_three_units_build_and_sign_what_a_device_asks_nginx_for(deployed: Machine, tmp_path: Path) -> None:
    server, signer, worker = (Unit.read(DEPLOY / f"systemd/{name}.service") for name in UNITS)
    [before], [start] = server.values["ExecStartPre"], server.values["ExecStart"]
    site = (DEPLOY / "nginx/asu.conf").read_text()
    assert (
        "is successful"
        in subprocess.run(
            ["nginx", "-t", "-c", _nginx(tmp_path, site)], capture_output=True, text=True, check=False
        ).stderr
    )
    with ExitStack() as stack:
        server_port, web_port = stack.enter_context(reserved_ports(2))
        site = site.replace("listen 80;", f"listen 127.0.0.1:{web_port};").replace(":8000", f":{server_port}")

        def go(name: str, *arguments: str) -> None:
            stack.enter_context(deployed.running(*arguments, log=tmp_path / f"{name}.log"))

        deployed.run(*server.command(before))
        go("signer", *signer.command(signer.values["ExecStart"][0]))
        until(lambda: deployed.run("sh", "-c", "test -S /run/asu/signer.socket && echo yes || echo no") == "yes\n")
        go("server", *server.command(start.replace("--port 8000", f"--port {server_port}")))
        go("worker", *worker.command(worker.values["ExecStart"][0]))
        go("nginx", "nginx", "-c", _nginx(tmp_path, site), "-g", "daemon off;")
        names = ["signer", "server", "worker", "nginx"]
        request = {"distro": "openwrt", "version": STABLE, "target": TARGET, "board": BOARD, "packages": ["vim"]}
        web = f"http://127.0.0.1:{web_port}"

        def asked() -> tuple[int, Any]:
            status, told = _post(f"{web}/api/upgrade-request", request)
            # 0 until nginx listens, 400 until the worker has fetched the catalogue, then 202 until the image is made.
            assert status in {0, 200, 202, 400, 502}, f"{status} {told}\n{log_texts(tmp_path, names)}"
            return status, told

        _status, told = until(asked, lambda answer: answer[0] == 200, every_s=0.2)
        image = urllib.request.urlopen(f"{web}{told['files']}/{told['sysupgrade']}").read()
        assert b'"vim"' in image
    name = deployed.run("sh", "-c", "ls -d /var/lib/asu/builds/artefacts/store/*").strip()
    verified = ["signify-openbsd", "-V", "-p", "/etc/asu/builds.pub", "-x", f"{name}/build.json.sig"]
    assert "Verified" in deployed.run(*verified, "-m", f"{name}/build.json")
    owners = deployed.run("stat", "--format=%U", name, "/run/asu").split()
    assert owners == ["asu-worker", "asu-signer"]


@pytest.mark.parametrize("kind", ["gthread", "asgi"])
def test_gunicorn_serves_the_old_entry_point(kind: str, tmp_path: Path) -> None:
    with reserved_port() as port:
        _ask_gunicorn(kind, port, tmp_path)


def _ask_gunicorn(kind: str, port: int, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("upstream_url: http://127.0.0.1:9\nallow_http: true\n")
    command = [sys.executable, "-m", "gunicorn", "--worker-class", kind, "--bind", f"127.0.0.1:{port}", "asu:app"]
    environment = {**os.environ, "ASU_CONFIG": str(tmp_path / "config.yml"), "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        try:
            until_it_listens(port, process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/distros") as answer:
                assert json.load(answer)[0]["distro"] == "openwrt"
            assert _post(f"http://127.0.0.1:{port}/api/v1/build", {})[0] in {400, 422}
        finally:
            process.terminate()
            process.communicate()


def _nginx(directory: Path, site: str) -> str:
    (directory / "site.conf").write_text(site)
    path = directory / "nginx.conf"
    path.write_text(
        f"user root;\npid {directory}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n access_log off;\n"
        f" client_body_temp_path {directory}/body;\n proxy_temp_path {directory}/proxy;\n"
        f" fastcgi_temp_path {directory}/f;\n uwsgi_temp_path {directory}/u;\n scgi_temp_path {directory}/s;\n"
        f" include {directory}/site.conf;\n}}\n"
    )
    return str(path)


def _post(url: str, document: object) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=json.dumps(document).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith((b"{", b"[")) else body.decode()
    except urllib.error.URLError:
        return 0, {}
