"""A Hub on the loopback interface: the routes that `huggingface_hub` reads models by, over folders ROOT/org/name."""

import hashlib
import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _files(repository: Path) -> list[str]:
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())


def _revision(repository: Path) -> str:
    digest = hashlib.sha1()
    for name in _files(repository):
        digest.update(name.encode() + (repository / name).read_bytes())
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *arguments):
        pass

    def reply(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str):
        self.reply(404, b"{}", Content_Type="application/json", X_Error_Code=what, X_Error_Message=what)

    def reply_json(self, value):
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self):
        parts = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repository = self.root.joinpath(*parts[:2])
        if len(parts) < 2 or not repository.is_dir():
            return self.missing("RepoNotFound")
        revision, name, rest = _revision(repository), "/".join(parts[:2]), parts[2:]
        if is_api and (not rest or rest[0] == "revision"):
            siblings = [{"rfilename": file} for file in _files(repository)]
            info = {"_id": "0", "id": name, "modelId": name, "sha": revision, "private": False, "gated": False}
            return self.reply_json(
                {**info, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
            )
        if is_api and rest[0] == "tree":
            below = "/".join(rest[2:])
            entries = [
                {"type": "file", "oid": "0" * 40, "size": (repository / file).stat().st_size, "path": file}
                for file in _files(repository)
                if file.startswith(below)
            ]
            return self.reply_json(entries)
        if rest and rest[0] == "resolve":
            path = repository.joinpath(*rest[2:])
            if path.is_file():
                body = path.read_bytes()
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.reply(200, body, ETag=etag, X_Repo_Commit=revision, Content_Type="application/octet-stream")
        self.missing("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def serve(root: Path):
    """Serve the folders below `root`; gives the address for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
