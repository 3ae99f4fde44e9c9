"""Neighbours that misbehave: plain sockets with a script."""

import socket
import threading
from collections.abc import Callable

from overhaul.host.listening import listen


def head(connection: socket.socket) -> bytes:
    """Read one request."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            break
        data += piece
    return data


def answer(status: str, body: bytes = b"", *, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body


Script = Callable[["Stranger", socket.socket, bytes], None]


class Stranger:
    """A neighbour that says that it has everything, and follows a script when it is asked for it.

    `lacks` is a part of the paths that it denies: what of them is asked for is then something else.
    """

    def __init__(self, script: "Script", *, lacks: bytes = b"/pieces/", listening: socket.socket | None = None) -> None:
        self.script = script
        self.lacks = lacks
        self.requests: list[bytes] = []
        self.ending = threading.Event()
        self.listening = listening or listen("127.0.0.1", 0)
        self.listening.settimeout(0.05)
        self.address = "{}:{}".format(*self.listening.getsockname()[:2])
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        threads: list[threading.Thread] = []
        while not self.ending.is_set():
            try:
                connection, _peer = self.listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            threads.append(threading.Thread(target=self.talk, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                while request := head(connection):
                    self.requests.append(request)
                    path = request.split(b" ")[1]
                    if path.count(b"/") == 4 and b"/images/" in path:
                        connection.sendall(answer("204 No Content"))
                    elif self.lacks in path:
                        connection.sendall(answer("404 Not Found"))
                    else:
                        self.script(self, connection, path)
            except OSError:
                return

    def __enter__(self) -> "Stranger":
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ending.set()
        self.thread.join()
        self.listening.close()


def lie(_stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    """Send wrong bytes of any size; the size is learned by being refused."""
    connection.sendall(answer("200 OK", b"x" * 65536))


def hang(stranger: Stranger, _connection: socket.socket, _path: bytes) -> None:
    stranger.ending.wait()


def trickle(stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    """Send a byte of a head now and then, for ever."""
    while not stranger.ending.wait(0.02):
        connection.sendall(b"H")


def flood(stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(answer("200 OK", length=1 << 40))
    while not stranger.ending.is_set():
        connection.sendall(b"x" * 65536)


def flood_head(stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stranger.ending.is_set():
        connection.sendall(b"X-More: of the same\r\n" * 1000)


def vanish(_stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(answer("200 OK", b"x" * 100, length=65536))
    connection.shutdown(socket.SHUT_RDWR)


def deny(_stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(answer("404 Not Found"))


def redirect(_stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")


def babble(_stranger: Stranger, connection: socket.socket, _path: bytes) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
