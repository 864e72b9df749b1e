"""A model hub on loopback: answers what huggingface_hub asks for, from folders on disk."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[str]:
    """Serves each folder as the main branch of its repository; gives the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            content = find(repositories, unquote(urlsplit(self.path).path))
            if isinstance(content, str):
                self.send(b"", body, 404, {"X-Error-Code": content})
            else:
                self.send(content, body)

        def send(self, content: bytes, body: bool, status: int = 200, more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Length": str(len(content))}
            for name, value in (headers | (more or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def find(repositories: dict[str, Path], path: str) -> bytes | str:
    """What a path of the hub holds, or the hub's code for why it holds nothing."""
    for repository, folder in repositories.items():
        if path == f"/api/models/{repository}" or path.startswith(f"/api/models/{repository}/revision/"):
            return json.dumps(info(repository, folder)).encode()
        if path.startswith(f"/api/models/{repository}/tree/"):
            return json.dumps(tree(folder)).encode()
        if path.startswith(f"/{repository}/resolve/"):
            file = folder / path.removeprefix(f"/{repository}/resolve/").partition("/")[2]
            return file.read_bytes() if file.is_file() else "EntryNotFound"
    return "RepoNotFound"


def files_of(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}


def info(repository: str, folder: Path) -> dict[str, object]:
    card = folder / "card.json"
    return {
        "id": repository,
        "modelId": repository,
        "sha": COMMIT,
        "private": False,
        "siblings": [{"rfilename": name} for name in files_of(folder)],
        "tags": [],
        "cardData": json.loads(card.read_text()) if card.is_file() else {},
    }


def tree(folder: Path) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
        for name, file in files_of(folder).items()
    ]
