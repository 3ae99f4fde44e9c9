"""Ports of loopback for programs that have to be told theirs."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Yield ports that the kernel gives to nobody else for the length of a block.

    They are bound and not listened on: a program that sets SO_REUSEADDR, as servers do, may listen there besides, and
    until it does connections are refused. A port that was only looked up may be another's when the program begins.
    """
    with ExitStack() as held:
        ports = []
        for _number in range(count):
            holder = held.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            ports.append(int(holder.getsockname()[1]))
        yield ports


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield one port as `reserved_ports` does."""
    with reserved_ports(1) as [port]:
        yield port
