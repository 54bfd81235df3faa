"""Files and addresses that inputs refer to and nobody may read; reading one of them is noticed."""

import contextlib
import ctypes
import http.server
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.sounds import by_ffmpeg, encoded, song

IN_OPEN = 0x20  # of <sys/inotify.h>
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


@dataclass(frozen=True)
class Elsewhere:
    """Where what must not be read lies: `folder / "secret.wav"` and other suffixes, and the same on a port of ours."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Watch(contextlib.AbstractContextManager):
    """Makes the files, serves the addresses, and tells what of them was opened. Linux only (inotify).

    Only addresses with "secret" in them are secret; the others serve inputs that are URLs.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        for suffix, content in secrets().items():
            (folder / f"secret.{suffix}").write_bytes(content)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._events < 0 or self._libc.inotify_add_watch(self._events, os.fsencode(folder), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._asked = []
        handler = type("Handler", (_Handler,), {"asked": self._asked, "folder": folder})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.elsewhere = Elsewhere(folder, self._server.server_port)

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        os.close(self._events)

    def opened(self) -> list[str]:
        """Names and addresses since the last call."""
        found, self._asked[:] = list(self._asked), []
        with contextlib.suppress(BlockingIOError):
            while content := os.read(self._events, 2**16):
                while content:
                    length = EVENT.unpack_from(content)[3]
                    name = content[EVENT.size : EVENT.size + length].rstrip(b"\0")
                    found += [os.fsdecode(name)] if name else []  # none: the folder itself
                    content = content[EVENT.size + length :]
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if "secret" in self.path:
            self.asked.append(self.path)
        name = self.path.strip("/")
        if name == "song.flac":
            self._answer(200, encoded("flac").content)
        elif name == "broken-off.flac":
            content = encoded("flac").content
            self._answer(200, content[: len(content) // 2], {"Content-Length": len(content)})
        elif name == "playlist.wav":
            self._answer(200, f"#EXTM3U\n#EXTINF:10,\n{self.folder}/secret.ts\n#EXT-X-ENDLIST\n".encode())
        elif name == "to-file.wav":
            self._answer(302, b"", {"Location": f"file://{self.folder}/secret.wav"})
        elif name == "in-circles.wav":
            self._answer(302, b"", {"Location": "/in-circles.wav"})
        else:
            self._answer(404, b"no")

    def _answer(self, status: int, content: bytes, headers: dict | None = None):
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def secrets() -> dict[str, bytes]:
    """The song under every suffix that a playlist may name, so that it would be separated if it were read."""
    whole = {name: encoded(name).content for name in ("aac", "flac", "mp3", "m4a")}
    segment = by_ffmpeg(song(), 44100, "mpegts", "aac", "fltp")
    return {**whole, "wav": encoded("wav16").content, "ts": segment, "m4s": encoded("m4a-fragmented").content}
