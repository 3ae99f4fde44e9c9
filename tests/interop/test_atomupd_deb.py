"""The Debian packages, built with Debian's own tools and installed into a fresh Debian that is then started.

Both take a minute of a processor or more, so all of it is one group that runs once, in one process.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tools import need

#: Packages are fetched and built, and a system is started: each waits for its own part of this at most.
pytestmark = [pytest.mark.xdist_group("atomupd-deb"), pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]
_PACKAGES = ("steamos-atomupd-client", "steamos-atomupd-server")
_BASE = ("python3-minimal", "python3", "dbus", "systemd-sysv")
#: Run inside the started system; each line is one finding.
_QUESTIONS = """\
systemctl start steamos-atomupd-server@pool.service && echo server $(systemctl is-active steamos-atomupd-server@pool)
python3 - <<'EOF'
import time, urllib.request
query = "product=steamos&release=holo&variant=steamdeck&arch=amd64&version=3.6&buildid=20240101.1&branch=stable"
for _try in range(1000):
    try:
        print("answer", urllib.request.urlopen(f"http://127.0.0.1:5000/?{query}", timeout=60).read().decode())
        break
    except OSError:
        time.sleep(0.1)
EOF
systemctl start atomupd-daemon.service && echo daemon $(systemctl is-active atomupd-daemon)
busctl get-property com.steampowered.Atomupd1 /com/steampowered/Atomupd1 com.steampowered.Atomupd1 CurrentBuildID
systemctl stop atomupd-daemon.service
set -- com.steampowered.Atomupd1 /com/steampowered/Atomupd1 com.steampowered.Atomupd1
echo activated $(busctl get-property "$@" Branch)
systemctl start steamos-atomupd-client.service; echo client $(systemctl show -p Result --value steamos-atomupd-client)
# What a unit said in its last moments may still be on its way into the journal.
journalctl --sync
journalctl -b --no-pager -u steamos-atomupd-client -u atomupd-daemon -u 'steamos-atomupd-server@*' -o cat
"""


def _run(*arguments: str | Path, timeout_s: float = 600) -> str:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, f"{arguments[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """Begin to make a minimal Debian; it mostly waits for its packages, while ours are built."""
    need("mmdebstrap")
    root = tmp_path_factory.mktemp("system") / "root"
    # Nobody reads in this system, and nothing in it outlives the test.
    options = ["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    options += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("locale", "man", "info")]
    argv = ["mmdebstrap", *options, f"--include={','.join(_BASE)}", "bookworm", str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        if process.poll() is None:
            process.terminate()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def packages(base: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, built from this checkout."""
    del base  # only begun
    for program in ("dpkg-buildpackage", "dh", "gcc"):
        need(program)
    output = tmp_path_factory.mktemp("packages")
    _run(PROJECT / "deploy/debian/build.sh", output)
    return output


@pytest.fixture(scope="module")
def system(packages: Path, base: "subprocess.Popen[str]") -> Path:
    """The minimal Debian with both packages installed."""
    assert isinstance(base.args, list)
    root = Path(str(base.args[-1]))
    said, _nothing = base.communicate(timeout=600)
    assert base.returncode == 0, said[-3000:]
    for package in packages.glob("*.deb"):
        shutil.copy(package, root / "tmp" / package.name)
    names = [f"/tmp/{package.name}" for package in packages.glob("*.deb")]
    _run("chroot", root, "dpkg", "--install", *names)
    return root


def test_the_packages_say_what_they_hold_and_need(packages: Path) -> None:
    assert sorted(path.name.partition("_")[0] for path in packages.glob("*.deb")) == list(_PACKAGES)
    for package in packages.glob("*.deb"):
        fields = _run("dpkg-deb", "--field", package, "Depends", "Version")
        assert "python3 (>= 3." in fields
        assert "python3 (<< 3." in fields
        contents = _run("dpkg-deb", "--contents", package)
        for other in {"/usr/lib/overhaul/client/", "/usr/lib/overhaul/server/"} - {
            "/usr/lib/overhaul/client/" if "client" in package.name else "/usr/lib/overhaul/server/"
        }:
            assert other not in contents


def test_the_client_knows_nothing_of_servers(packages: Path) -> None:
    [client] = packages.glob("steamos-atomupd-client*.deb")
    contents = _run("dpkg-deb", "--contents", client)
    for library in ("fastapi", "uvicorn", "sqlalchemy", "pydantic"):
        assert f"/client/{library}/" not in contents


@pytest.mark.parametrize(
    "program",
    [
        "steamos-atomupd-client",
        "steamos-atomupd-mkmanifest",
        "atomupd-daemon",
        "overhaul",
        "steamos-atomupd-server",
        "steamos-atomupd-staticserver",
    ],
)
def test_every_program_runs(system: Path, program: str) -> None:
    assert program in _run("chroot", system, program, "--help")


def test_the_example_configurations_are_there(system: Path) -> None:
    examples = system / "usr/share/doc/steamos-atomupd-client/examples"
    assert {path.name for path in examples.iterdir()} == {"client.conf", "client-early.conf", "client-slots.conf"}


def test_the_units_start_and_work_together(system: Path) -> None:
    _configure(system)
    questions = system / "root/questions"
    questions.write_text(_QUESTIONS)
    unit = system / "etc/systemd/system/questions.service"
    unit.write_text(
        "[Unit]\nAfter=dbus.service\n[Service]\nType=oneshot\nStandardOutput=file:/root/answers\n"
        "StandardError=inherit\nExecStart=/bin/sh /root/questions\nExecStopPost=/bin/systemctl --no-block poweroff\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    _run("systemctl", f"--root={system}", "enable", "questions.service")
    need("systemd-nspawn")
    container = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
    subprocess.run(
        [*container, f"--directory={system}", "--console=pipe"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=600,
    )
    answers = (system / "root/answers").read_text()
    assert "server active" in answers, answers
    assert '"buildid": "20240201.1"' in answers, answers
    assert "daemon active" in answers, answers
    assert 's "20240101.1"' in answers, answers
    assert 'activated s "stable"' in answers, answers
    # There is no RAUC in this system, and the client says exactly that.
    assert "client exit-code" in answers, answers
    assert "The name de.pengutronix.rauc was not provided" in answers, answers
    assert "Traceback" not in answers, answers


def _configure(system: Path) -> None:
    pool = system / "srv/pool"
    pool.mkdir(parents=True)
    (pool / "new.raucb").touch()
    (pool / "new.castr").mkdir()
    manifest = (
        '{"product": "steamos", "release": "holo", "variant": "steamdeck", "branch": "stable", "arch": "amd64", '
        '"version": "%s", "buildid": "%s"}'
    )
    (pool / "new.manifest.json").write_text(manifest % ("3.7", "20240201.1"))
    configuration = system / "etc/steamos-atomupd"
    (configuration / "manifest.json").write_text(manifest % ("3.6", "20240101.1"))
    (configuration / "server/pool.conf").write_text(
        "[Server]\nHost = 127.0.0.1\n[Images]\nPoolDir = /srv/pool\nProducts = steamos\nReleases = holo\n"
        "Variants = steamdeck\nBranches = stable\nArchs = amd64\n"
    )
    (configuration / "client.conf").write_text(
        "[Server]\nMetaUrl = http://127.0.0.1:5000/nothing\nQueryUrl = http://127.0.0.1:5000/\n"
        "ImagesUrl = http://127.0.0.1:5000/images\n[Client]\nAllowHttp = yes\n"
    )
