"""A door in front of a server: clients come through it, until it is shut."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlparse


class Door:
    """Passes TCP connections on to the server at `url`; shut, it drops them and takes no new ones."""

    def __init__(self, url: str):
        where = urlparse(url)
        self._server = (where.hostname, where.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = True
        self._passing: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Door:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        self._listener.close()

    def shut(self) -> None:
        self._open = False
        for one in list(self._passing):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self._open = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._open:
                    client.close()
                    continue
                server = socket.create_connection(self._server)
                for here, there in ((client, server), (server, client)):
                    self._passing.add(here)
                    threading.Thread(target=self._pass, args=(here, there), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                there.sendall(data)
        for one in (here, there):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._passing.discard(here)
        here.close()
