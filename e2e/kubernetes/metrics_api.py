"""A metrics API (custom.metrics.k8s.io) for a stage: what pods export stands in a file, which is read for every answer.

    metrics_api.py FILE ADDRESS PORT CERTIFICATE KEY      FILE: {"vllm:num_requests_waiting": {"pod-name": "40"}}

It answers as prometheus-adapter does to the two things that the HPA controller asks: what there is, and one metric of the pods of
a namespace. Of labels it knows nothing: the file has the pods that are meant.
"""

import json
import ssl
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

GROUP_VERSION = "custom.metrics.k8s.io/v1beta2"


def answer(path: str, told: dict[str, dict[str, str]]) -> dict[str, Any] | None:
    parts = [unquote(part) for part in urlparse(path).path.strip("/").split("/")]
    match parts:
        case ["apis", "custom.metrics.k8s.io", "v1beta2"]:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": []}
        case ["apis", "custom.metrics.k8s.io", "v1beta2", "namespaces", namespace, "pods", "*", metric] if (
            metric in told
        ):
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            items = [
                {
                    "describedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod},
                    "metric": {"name": metric},
                    "timestamp": now,
                    "value": value,
                }
                for pod, value in told[metric].items()
            ]
            return {"kind": "MetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": items}
    return None


class Handler(BaseHTTPRequestHandler):
    file: Path

    def do_GET(self) -> None:
        found = answer(self.path, json.loads(self.file.read_text()))
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    file, address, port, certificate, key = sys.argv[1:]
    Handler.file = Path(file)
    server = ThreadingHTTPServer((address, int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
