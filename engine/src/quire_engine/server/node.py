"""`quire serve` on a node other than the first: ranks, and an answer to whoever asks whether we are there.

/livez is 200 from the beginning, /readyz once the ranks run; requests go to node 0.
"""

import json
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from quire_engine.process.node import run_ranks
from quire_engine.process.nodes import Nodes

__all__ = ["serve_node"]


def serve_node(nodes: Nodes, flags: Sequence[str], listener: socket.socket) -> None:
    """Until node 0 has ended, or a signal; EngineFailure says what went wrong."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    running = threading.Event()
    server = ThreadingHTTPServer(("", 0), _answers(nodes, running), bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    run_ranks(nodes, flags, running.set)


def _answers(nodes: Nodes, running: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            where = f"node {nodes.node} of {nodes.count} runs ranks; requests go to node 0, at {nodes.address}"
            if self.path in ("/livez", "/readyz", "/health"):
                self._answer(200 if self.path == "/livez" or running.is_set() else 503, {"status": where})
            else:
                self._answer(404, {"error": {"message": where, "type": "not_found_error", "param": None, "code": 404}})

        def do_POST(self) -> None:
            self.do_GET()

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come each second."""

    return Answers
