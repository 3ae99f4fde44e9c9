"""nginx on loopback, as the peer among static servers."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tools import need
from tests.waiting import until_it_listens

from overhaul.host.listening import listen

_CONFIGURATION = """
daemon off; worker_processes {workers}; {user} pid {place}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; etag on; sendfile on; keepalive_requests 1000000; types {{ application/json json; }}
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; add_header Cache-Control no-cache; }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A server that runs."""

    process_id: int
    port: int

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving_files(root: Path, scratch: Path, *, workers: int = 1) -> Iterator[Nginx]:
    """Serve the files under `root` from a port of its own; its own files lie in `scratch`."""
    with listen("127.0.0.1", 0) as probe:
        port = int(probe.getsockname()[1])
    place = scratch / "nginx"
    place.mkdir()
    configuration = place / "nginx.conf"
    # Workers would give up root and with it the tree, which lies in a private directory.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(
        _CONFIGURATION.format(workers=workers, user=user, place=place, port=port, root=root.absolute())
    )
    with subprocess.Popen([need("nginx"), "-c", str(configuration), "-p", str(place)]) as process:
        try:
            until_it_listens(port, process)
            yield Nginx(process.pid, port)
        finally:
            process.terminate()
