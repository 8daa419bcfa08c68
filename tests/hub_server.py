"""A hub on this machine: folders under the ids that a program asks for, as the client of the Hugging Face hub reads them.

GET /api/models/ID/revision/REVISION gives a repository's commit, /api/models/ID/tree/REVISION its files; GET or HEAD /ID/resolve/REVISION/PATH gives one, with the commit
and an ETag in its head. Anything else is not found. Source of the protocol: huggingface_hub's documentation and client.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _handler(folders: dict[str, Path], requests: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            requests.append(f"{self.command} {self.path}")

        def _head(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(length), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def _json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self._head(200, len(data), Content_Type="application/json")
            self.wfile.write(data)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.+)?)?", path)
            if listing and listing[1] in folders and not listing[4]:
                files = sorted(file for file in folders[listing[1]].rglob("*") if file.is_file())
                sizes = {str(file.relative_to(folders[listing[1]])): file.stat().st_size for file in files}
                if listing[2] == "tree":
                    return self._json(
                        [
                            {"type": "file", "path": name, "size": size, "oid": f"{size:040x}"}
                            for name, size in sizes.items()
                        ]
                    )
                return self._json(
                    {"id": listing[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
                )
            file = re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path)
            if not file or file[1] not in folders:
                return self._head(404, 0, X_Error_Code="EntryNotFound" if listing else "RepoNotFound")
            source = folders[file[1]] / file[2]
            if not source.is_file():
                return self._head(404, 0, X_Error_Code="EntryNotFound")
            self._head(200, source.stat().st_size, ETag=f'"{abs(hash(str(source))):x}"')
            if self.command == "GET":
                with source.open("rb") as data:
                    while block := data.read(1 << 20):
                        self.wfile.write(block)
            return None

        do_HEAD = do_GET

    return Handler


@contextmanager
def serve(folders: dict[str, Path]):
    """Its address and the list of requests so far, while the server lives."""
    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folders, requests))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
