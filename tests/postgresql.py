"""A real PostgreSQL of Debian's package, private to a test: loopback, its own directory, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import reserved_port
from tests.tools import need

#: PostgreSQL refuses to run as root.
_ACCOUNT = "postgres"
#: Only a failure takes so long.
_PATIENCE_S = "300"


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[str]:
    """Yield the address of an empty database; only a `durable` one waits for the disk."""
    programs = Path(need("initdb")).parent
    account = _ACCOUNT if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="overhaul-pg-"))
    if account is not None:
        shutil.chown(home, account)
    data = home / "data"

    def run(*arguments: str) -> None:
        subprocess.run(arguments, user=account, cwd=home, check=True, capture_output=True)

    # The locale of the environment need not be one that this machine has.
    locale = ["--locale=C", "--encoding=UTF8"]
    run(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "overhaul", "--no-sync", *locale)
    with reserved_port() as port:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
        options += "" if durable else " -c fsync=off"
        waiting = ["-w", "-t", _PATIENCE_S]
        run(str(programs / "pg_ctl"), "-D", str(data), *waiting, "-l", str(home / "log"), "-o", options, "start")
        try:
            yield f"postgresql://overhaul@127.0.0.1:{port}/postgres"
        finally:
            run(str(programs / "pg_ctl"), "-D", str(data), *waiting, "-m", "immediate", "stop")
    shutil.rmtree(home)
