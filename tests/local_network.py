"""A local network of its own: hosts in network namespaces on one bridge, with nothing outside.

Multicast is the kernel's, addresses are those that households have: 10.77.0.0/24, and link-local ones of IPv6. A host
may also have link-local addresses alone. Every host's interface is called `lan0`; `inside` runs an action in a thread
whose sockets, and those of the threads it starts, belong to a host; `process` starts a program there.
"""

import ctypes
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.tools import need
from tests.waiting import PATIENCE_S, until

_CLONE_NEWNET = 0x40000000

Found = TypeVar("Found")


def within(namespace: str, action: Callable[[], Found]) -> Found:
    """Do something in a thread whose sockets belong to a network namespace; return what it returns."""
    found: list[Found] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Path("/run/netns", namespace).open("rb") as place:
                assert ctypes.CDLL(None).setns(place.fileno(), _CLONE_NEWNET) == 0
            found.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found[0]


class Host:
    """One host of a network."""

    def __init__(self, name: str, address: str, link_local: str) -> None:
        self.name = name
        #: Its IPv4 address; empty when it has none.
        self.address = address
        #: Its address of IPv6, which needs a scope to be used.
        self.link_local = link_local

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Return a command as it is run on this host."""
        return [need("nsenter"), f"--net=/run/netns/{self.name}", *arguments]

    def run(self, *arguments: str | Path) -> str:
        """Run a program here to its end; return what it says."""
        return subprocess.run(self.command(*arguments), check=True, capture_output=True, text=True).stdout

    def inside(self, action: Callable[[], Found]) -> Found:
        """Do something in a thread of this host; return what it returns."""
        return within(self.name, action)

    @contextmanager
    def process(self, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
        """Run a program of Overhaul here for the length of a block; it is told to end by SIGTERM."""
        command = self.command(sys.executable, "-m", "overhaul", *arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.communicate(timeout=PATIENCE_S)

    def count(self, name: str, rule: str, *, hook: str = "output") -> None:
        """Begin to count what passes `hook` and meets the nftables `rule`."""
        nft = need("nft")
        self.run(nft, "add table inet counted")
        self.run(nft, f"add counter inet counted {name}")
        self.run(nft, f"add chain inet counted {hook} {{ type filter hook {hook} priority 0; }}")
        self.run(nft, f"add rule inet counted {hook} {rule} counter name {name}")

    def counted(self, name: str) -> tuple[int, int]:
        """Return the packets and bytes that were counted so far."""
        told = json.loads(self.run(need("nft"), "--json", f"list counter inet counted {name}"))
        (counter,) = [each["counter"] for each in told["nftables"] if "counter" in each]
        return counter["packets"], counter["bytes"]


@contextmanager
def local_network(names: Sequence[str], *, only_link_local: bool = False) -> Iterator[dict[str, Host]]:
    """Make hosts with these names for the length of a block; numbers of their addresses follow the order, from 1."""
    ip, mark = need("ip"), secrets.token_hex(3)
    made: list[str] = []

    def add(namespace: str) -> str:
        subprocess.run([ip, "netns", "add", namespace], check=True, capture_output=True)
        made.append(namespace)
        return namespace

    try:
        switch = Host(add(f"switch-{mark}"), "", "")
        switch.run(ip, "link", "add", "bridge0", "type", "bridge", "mcast_snooping", "0")
        switch.run(ip, "link", "set", "bridge0", "up")
        hosts: dict[str, Host] = {}
        for number, name in enumerate(names, start=1):
            namespace = add(f"{name}-{mark}")
            host = Host(namespace, "" if only_link_local else f"10.77.0.{number}", f"fe80::77:{number}")
            switch.run(ip, "link", "add", f"port{number}", "type", "veth", "peer", "name", "lan0", "netns", namespace)
            switch.run(ip, "link", "set", f"port{number}", "master", "bridge0", "up")
            host.run(ip, "link", "set", "lo", "up")
            host.run(ip, "link", "set", "lan0", "addrgenmode", "none")
            host.run(ip, "address", "add", f"{host.link_local}/64", "dev", "lan0", "nodad")
            if host.address:
                host.run(ip, "address", "add", f"{host.address}/24", "dev", "lan0")
            host.run(ip, "link", "set", "lan0", "up")
            hosts[name] = host
        for number, host in enumerate(hosts.values(), start=1):
            until(partial(host.run, ip, "link", "show", "dev", "lan0"), lambda told: "LOWER_UP" in told)
            # The bridge hears of a port a moment later than the host behind it, and passes nothing on before.
            port = partial(switch.run, ip, "-details", "link", "show", "dev", f"port{number}")
            until(port, lambda told: "state forwarding" in told)
        yield hosts
    finally:
        for namespace in made:
            subprocess.run([ip, "netns", "delete", namespace], check=True, capture_output=True)
