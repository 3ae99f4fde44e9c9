"""A simulated S3 service on the loopback interface; no real one is on the machine."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import urllib3
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BUCKET = "overhaul"


@contextmanager
def bucket_service() -> Iterator[str]:
    """Yield the address of a service that has the bucket `BUCKET`; credentials are in the environment meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        assert server._server is not None
        server._server.app = _one_at_a_time(server._server.app)
        endpoint = f"http://{host}:{port}"
        urllib3.request("PUT", f"{endpoint}/{BUCKET}").release_conn()
        try:
            yield endpoint
        finally:
            server.stop()


def _one_at_a_time(application: "WSGIApplication") -> "WSGIApplication":
    """Let requests take turns: moto looks whether a condition is met, then writes; a real service does both at once."""
    turn = threading.Lock()

    def take_turns(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        with turn:
            return application(environ, start_response)

    return take_turns
