"""A web server that takes alarms and keeps them."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Receiver(http.server.BaseHTTPRequestHandler):
    statuses: list[int]
    bodies: list[object]
    logins: list[str | None]

    def do_POST(self) -> None:
        self.logins.append(self.headers["Authorization"])
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.statuses.pop(0) if self.statuses else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextmanager
def receiving() -> Iterator[http.server.HTTPServer]:
    """Its handler class keeps `bodies` and `logins`, and answers `statuses` first, then 204."""
    handler = type("Handler", (Receiver,), {"statuses": [], "bodies": [], "logins": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
