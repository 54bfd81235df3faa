"""The Space's app in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_S = 60
ALLOWED_SECONDS = 60


class Space(contextlib.AbstractContextManager):
    """The app at `address`, until the `with` block ends; `temporary_files()` and `log()` tell what it leaves.

    Args:
        model_dir: of its model; what lies beside the code, if empty.
        folder: of the app; the checkout's, if not given. Nothing that is imported comes from elsewhere than this folder
            and the site packages, where this package isn't, as its editable install needs `site`, which -S leaves out.
        max_seconds: longest song that it takes.
    """

    def __init__(self, model_dir: str, folder: Path | None = None, max_seconds: int = ALLOWED_SECONDS):
        code = folder or ROOT
        app = code / "app.py" if folder else code / "space" / "app.py"
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        (self.folder / "tmp").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "GRADIO_ANALYTICS_ENABLED": "0",
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_SHARE": "0",
            "GRADIO_TEMP_DIR": str(self.folder / "uploads"),
            "HF_HUB_OFFLINE": "1",
            "MSS_MAX_SECONDS": str(max_seconds),
            "MSS_MODEL": model_dir,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(code), *(path for path in sys.path if path.endswith("site-packages"))]),
            "TMPDIR": str(self.folder / "tmp"),
        }
        with open(self.folder / "log.txt", "w") as output:
            command = [sys.executable, "-S", str(app)]
            self._app = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._app.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The Space did not start:\n{self.log()}")
            time.sleep(0.3)
        self.begin = set(self.temporary_files())

    def __exit__(self, *exception):
        self._app.kill()
        self._app.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/config").status_code == 200
        return False

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def temporary_files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "tmp").iterdir())
