"""Static servers with the configuration we ship serve a repository to real ostree, and nothing else of it."""

import http.client
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.ostree_trees import BRANCH, TIME, commit_ours, make_tree, ostree
from tests.ports import reserved_port
from tests.tools import need
from tests.waiting import until_it_listens

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.delta_make import make_static_delta
from overhaul.dialects.ostree.exporting import Export, export
from overhaul.dialects.ostree.heads import move_heads
from overhaul.dialects.ostree.layout import CacheRule, cache_rule
from overhaul.progress import Silence

_DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def served() -> Iterator[ArchiveRepository]:
    """Return a repository that a server without rights can read, with a delta, locks and half-written files."""
    with tempfile.TemporaryDirectory(prefix="served-") as name:
        Path(name).chmod(0o755)
        ours = ArchiveRepository.create(Path(name) / "ostree")
        commits = [
            bytes.fromhex(commit_ours(ours, make_tree(Path(name) / f"tree{n}", edition=n), at=TIME + n)) for n in (1, 2)
        ]
        make_static_delta(ours, commits[0], commits[1], workers=1, progress=Silence())
        with ours.writing():
            move_heads(ours, {}, signers=[], now=TIME)
        (ours.path / "updates.trustedkeys.gpg").write_bytes(b"keys")
        (ours.path / "refs/heads/.half.tmp").write_bytes(b"half")
        (ours.path / "tmp/half").write_bytes(b"half")
        yield ours


@contextmanager
def _nginx(repository: Path, place: Path) -> Iterator[int]:
    with reserved_port() as port:
        yield from _nginx_at(port, repository, place)


def _nginx_at(port: int, repository: Path, place: Path) -> Iterator[int]:
    snippet = (_DEPLOY / "nginx/ostree.conf").read_text().replace("root /srv;", f"root {repository.parent};")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {place}/{kind};" for kind in kinds)
    (place / "nginx.conf").write_text(
        f"daemon off; {'user root;' if os.geteuid() == 0 else ''} worker_processes 1; pid {place}/pid;"
        f"error_log {place}/error.log; events {{ }} http {{ access_log off; {temporary}"
        f"server {{ listen 127.0.0.1:{port};\n{snippet}\n}} }}"
    )
    command = [need("nginx"), "-p", str(place), "-c", str(place / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        try:
            until_it_listens(port, server)
            yield port
        finally:
            server.terminate()


def _paths(repository: Path) -> list[str]:
    files = (path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
    return [*files, "objects/44/", "refs/heads/", "nothing"]


def test_nginx_serves_a_repository_as_the_rules_say_and_ostree_pulls_from_it(
    served: ArchiveRepository, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as place, _nginx(served.path, Path(place)) as port:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for path in _paths(served.path):
                connection.request("GET", f"/ostree/{path}")
                answer = connection.getresponse()
                body = answer.read()
                rule = cache_rule(path)
                if rule is CacheRule.HIDDEN or not (served.path / path).is_file():
                    assert answer.status in (400, 403, 404), path
                    continue
                assert (answer.status, answer.getheader("Cache-Control")) == (200, rule.value), path
                assert body == (served.path / path).read_bytes()
            connection.request("GET", "/ostree/summary", headers={"Range": "bytes=0-9"})
            answer = connection.getresponse()
            assert (answer.status, len(answer.read())) == (206, 10)
        device = tmp_path / "device"
        ostree("init", "--mode=bare-user", repo=device)
        ostree("remote", "add", "--no-gpg-verify", "updates", f"http://127.0.0.1:{port}/ostree/", repo=device)
        head = served.branches()[BRANCH]
        parent = next(served.ancestors(head)).hex()
        ostree("pull", "updates", f"{BRANCH}@{parent}", repo=device)
        ostree("pull", "--require-static-deltas", "updates", BRANCH, repo=device)
        assert ostree("rev-parse", f"updates:{BRANCH}", repo=device).strip() == head.hex()
        ostree("fsck", repo=device)


def test_apache_takes_the_configuration_and_its_rules_say_the_same(served: ArchiveRepository, tmp_path: Path) -> None:
    snippet = (_DEPLOY / "apache/ostree.conf").read_text()
    modules = Path("/usr/lib/apache2/modules")
    need("apache2")
    names = ("mpm_event", "authz_core", "alias", "headers")
    loads = "".join(f"LoadModule {name}_module {modules}/mod_{name}.so\n" for name in names)
    conf = tmp_path / "apache.conf"
    conf.write_text(f'{loads}ServerName x\nServerRoot "{tmp_path}"\nErrorLog /dev/null\nListen 127.0.0.1:1\n{snippet}')
    done = subprocess.run([need("apache2"), "-t", "-f", str(conf)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules = re.findall(r'<LocationMatch "([^\n]*)">.*?Cache-Control "(.*?)"', snippet, flags=re.DOTALL)
    for path in _paths(served.path):
        if not (served.path / path).is_file():
            continue
        said = [value for pattern, value in rules if re.search(pattern, f"/ostree/{path}")]
        rule = cache_rule(path)
        assert said == ([] if rule is CacheRule.HIDDEN else [rule.value]), path


def test_two_builds_of_one_source_date_are_two_for_a_client_that_asks_whether_the_summary_changed(
    tmp_path: Path,
) -> None:
    """nginx tells files apart by time and size, and a summary that names another commit is no longer than before."""
    with tempfile.TemporaryDirectory(prefix="served-") as name, tempfile.TemporaryDirectory() as place:
        Path(name).chmod(0o755)
        device = tmp_path / "device"
        ostree("init", "--mode=bare-user", repo=device)
        with _nginx(Path(name) / "ostree", Path(place)) as port:
            address = f"http://127.0.0.1:{port}/ostree/"
            ostree("remote", "add", "--no-gpg-verify", "updates", address, repo=device)
            seen, times, tag = [], [], ""
            for edition in (1, 2):
                request = Export(
                    tree=make_tree(tmp_path / f"tree{edition}", edition=edition), repository=Path(name) / "ostree",
                    branch=BRANCH, layout=None, delta_sources=0, timestamp=TIME,
                )  # fmt: skip
                commit = export(request, signers=[], workers=1, progress=Silence()).commit
                times.append(ArchiveRepository(request.repository).commit(bytes.fromhex(commit)).timestamp)
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
                    connection.request("GET", "/ostree/summary", headers={"If-None-Match": tag})
                    answer = connection.getresponse()
                    seen.append(answer.status)
                    tag = answer.getheader("ETag") or ""
                ostree("pull", "updates", BRANCH, repo=device)
                assert ostree("rev-parse", f"updates:{BRANCH}", repo=device).strip() == commit
        assert seen == [200, 200]
        # Equal times would let somebody serve the first, which is signed as well, to devices that have the second.
        assert times == [TIME, TIME + 1]
