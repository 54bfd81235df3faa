"""A Hub on the loopback interface: the routes by which `huggingface_hub` makes, fills and reads repositories."""

import base64
import hashlib
import json
import shutil
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_writer"  # may write to repositories of "org", and to no others
WRITABLE = "org"
LARGE = (".safetensors", ".flac", ".wav")  # files that git knows by a pointer


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Attributes:
        root: snapshots of all commits, ROOT/models/org/name/COMMIT/ and ROOT/spaces/...
        commits: of each repository ("models/org/name"), the oldest first.
        created: what each repository was asked for with.
        requests: method, path and Range of each request, without its query.
        cut: file names, and after how many bytes the connection breaks the next times.
        shorten: file names, and how many bytes are sent of them as if they were all.
    """

    root: Path
    address: str = ""
    commits: dict[str, list[str]] = field(default_factory=dict)
    created: dict[str, dict] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    shorten: dict[str, int] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)

    def snapshot(self, repository: str, revision: str = "main") -> Path | None:
        """The files of a commit; None if there is no such one."""
        commits = self.commits.get(repository, [])
        commit = commits[-1] if revision == "main" and commits else revision
        return self.root / repository / commit if commit in commits else None

    def commit(self, repository: str, operations: list[dict]) -> str:
        digest = hashlib.sha1(f"{len(self.commits[repository])}{operations}".encode()).hexdigest()
        folder = self.root / repository / digest
        before = self.snapshot(repository)
        if before:
            shutil.copytree(before, folder)
        for operation in operations:
            value = operation["value"]
            if operation["key"] in ("file", "lfsFile"):
                is_large = operation["key"] == "lfsFile"
                content = self.large_files[value["oid"]] if is_large else base64.b64decode(value["content"])
                path = folder / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.commits[repository].append(digest)
        return digest

    def downloads(self) -> list[str]:
        """Names of the files that were asked for, with Range where it was."""
        return [
            path.rsplit("/", 1)[1] + (f" {part}" if part else "")
            for method, path, part in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def reply(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, status: int = 200, **headers):
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def missing(self, what: str):
        self.reply_json({}, 404, X_Error_Code=what, X_Error_Message=what)

    def parts(self) -> list[str]:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        return path.strip("/").split("/")

    def do_GET(self):
        parts = self.parts()
        is_api = parts[0] == "api"
        if is_api:
            kind, parts = parts[1], parts[2:]
        else:
            kind, parts = ("spaces", parts[1:]) if parts[0] == "spaces" else ("models", parts)
        name, (action, revision, *rest) = "/".join(parts[:2]), [*parts[2:], "", ""][: max(2, len(parts) - 2)]
        repository = f"{kind}/{name}"
        if repository not in self.hub.commits:
            return self.missing("RepoNotFound")
        folder = self.hub.snapshot(repository, revision or "main")
        if folder is None:
            return self.missing("RevisionNotFound")
        if is_api and action in ("", "revision"):
            siblings = [{"rfilename": file} for file in files_of(folder)]
            info = {"_id": "0", "id": name, "modelId": name, "sha": folder.name, "gated": False, "disabled": False}
            info["private"] = self.hub.created[repository].get("visibility") == "private"
            return self.reply_json({**info, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})
        if is_api and action == "tree":
            return self.reply_json(
                [
                    {"type": "file", "oid": "0" * 40, "size": (folder / file).stat().st_size, "path": file}
                    for file in files_of(folder)
                    if file.startswith("/".join(rest))
                ]
            )
        if action == "resolve" and folder.joinpath(*rest).is_file():
            return self.send_file(folder.joinpath(*rest), folder.name)
        self.missing("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def send_file(self, path: Path, commit: str):
        body = path.read_bytes()
        is_large = path.name.endswith(LARGE)
        etag = hashlib.sha256(body) if is_large else hashlib.sha1(b"blob %d\0" % len(body) + body)  # as git has it
        headers = {"ETag": f'"{etag.hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.reply(200, body, **headers)
        body = body[: self.hub.shorten.get(path.name)]
        begin, total = 0, len(body)
        if self.headers.get("Range"):
            begin = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            headers["Content_Range"] = f"bytes {begin}-{total - 1}/{total}"
            body = body[begin:]
        length = len(body)
        if self.hub.cut.get(path.name):
            body, self.close_connection = body[: self.hub.cut[path.name].pop(0)], True
        self.reply(206 if begin else 200, body, Content_Length=length, **headers)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_PUT(self):
        content = self.body()
        self.hub.large_files[self.parts()[-1]] = content
        self.reply(200)

    def do_POST(self):
        body, parts = self.body(), self.parts()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply_json({"error": "Invalid username or password."}, 401)
        if parts == ["api", "validate-yaml"]:
            return self.reply_json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}
            return self.reply_json({"transfer": "basic", "objects": objects})
        _, kind, *name, action, _ = parts
        repository = f"{kind}/{'/'.join(name)}"
        if repository not in self.hub.commits:
            return self.missing("RepoNotFound")
        if name[0] != WRITABLE:
            return self.reply_json({"error": "Forbidden: you do not have write access."}, 403)
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(LARGE) else "regular" for path in files]
            return self.reply_json(
                {
                    "files": [
                        {"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in zip(files, modes)
                    ]
                }
            )
        commit = self.hub.commit(repository, [json.loads(line) for line in body.splitlines()][1:])
        url = f"{self.hub.address}/{repository.removeprefix('models/')}/commit/{commit}"
        self.reply_json({"success": True, "commitOid": commit, "commitUrl": url})

    def create(self, wanted: dict):
        name = f"{wanted['organization']}/{wanted['name']}"
        repository = f"{wanted.get('type', 'model')}s/{name}"
        url = f"{self.hub.address}/{repository.removeprefix('models/')}"
        if wanted["organization"] != WRITABLE:
            return self.reply_json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        if repository in self.hub.commits:
            return self.reply_json({"error": "You already created this repo", "url": url}, 409)
        self.hub.created[repository] = wanted
        self.hub.commits[repository] = []
        self.hub.commit(repository, [{"key": "file", "value": {"path": ".gitattributes", "content": ""}}])
        self.reply_json({"url": url})


@contextmanager
def serve(root: Path):
    """Serve what is pushed, kept below `root`; gives the `Hub`, whose address is for HF_ENDPOINT."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def connect(hub: Hub, patch, folder: Path):
    """Let this process read and write `hub` (pytest's monkeypatch undoes it), logged in, with a cache in `folder`."""
    import transformers.utils.hub
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers are others
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf_home" / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf_home" / "token"))
    patch.setattr(transformers.utils.hub, "_hf_api", None)  # made with the address of its time
    patch.setenv("HF_TOKEN", TOKEN)
