"""A simulated S3 service on the loopback interface; no real one is on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import urllib3
from moto.server import ThreadedMotoServer

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
        endpoint = f"http://{host}:{port}"
        urllib3.request("PUT", f"{endpoint}/{BUCKET}").release_conn()
        try:
            yield endpoint
        finally:
            server.stop()
