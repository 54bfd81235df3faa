"""What one song may take of the Space, and one visitor of its queue."""

import contextlib
import dataclasses
import math
import time
from collections import Counter, defaultdict
from concurrent.futures import CancelledError
from pathlib import Path

import gradio as gr

from processing_mss import AudioReader, damage_message

READ_LIMIT_S = 60  # seconds that a song may take to be decoded once
MAX_WIDTH = 8 * 48000  # samples of all channels in a second of the longest song, on average: 7.1 at 48 kHz
SONGS_PER_VISITOR = 2  # that wait or are separated
FORGET_S = 3600  # a song that has waited so long was given up


@dataclasses.dataclass
class Watch:
    """Looks at one separation: shows how far it is, and ends it when that is wanted or reading takes too long.

    One song is separated at a time: what never ends would keep everybody waiting. ZeroGPU separates in a process of
    its own, to which this is copied: that the song was given up is told by a file, which both processes see.

    Args:
        session: of the page that asked.
        progress: the page's.
        name: of the song.
        max_seconds: longest song that is taken.
        stop_file: exists once the song is given up.
    """

    session: str | None
    progress: gr.Progress
    name: str
    max_seconds: float
    stop_file: Path
    deadline: float = dataclasses.field(default_factory=lambda: time.monotonic() + READ_LIMIT_S)
    begin: float = 0.0

    def stop(self):
        """End it at its next step."""
        with contextlib.suppress(FileNotFoundError):  # it has ended, and its folder is gone
            self.stop_file.touch()

    @property
    def is_running(self) -> bool:
        return self.stop_file.parent.is_dir()

    def on_read(self, seconds: float):
        self._check_stopped()
        if time.monotonic() > self.deadline:
            raise ValueError(f"Reading {self.name} takes more than {READ_LIMIT_S} s: is it whole?")

    def on_whole(self, reader: AudioReader):
        """The song was read once, and can be: now it is separated, in time that its length tells."""
        self.deadline = math.inf
        if reader.num_samples * reader.num_channels > self.max_seconds * MAX_WIDTH:
            raise ValueError(
                f"{self.name} has {reader.num_channels} channels at {reader.sampling_rate} Hz, too many for a song of "
                "this length here: cut it, or take fewer channels or a lower rate."
            )
        if reader.losses:
            gr.Warning(damage_message(self.name, reader.losses), duration=None)

    def on_progress(self, done: int, total: int):
        """Steps of the model, of which decoding has one for each token."""
        self._check_stopped()
        self.begin = self.begin or time.monotonic()
        seconds = time.monotonic() - self.begin
        left = f", {seconds / done * (total - done):.0f} s left" if done and seconds > 1 else ""
        self.progress((done, total), desc=f"Separating{left}")

    def _check_stopped(self):
        if self.stop_file.exists():
            raise CancelledError("Cancelled.")


class Visitors:
    """Who has how many songs in the queue, so that nobody takes all of its places.

    A visitor is an address: those behind one router share their places, and who forges addresses has more. A session is
    a page, or a client.
    """

    def __init__(self):
        self._songs = defaultdict(list)  # of an address: (session, when it came)
        self._given_up = Counter()  # of an address: songs that may still be in the queue, and will not be separated

    def may_enter(self, address: str) -> bool:
        still = [song for song in self._songs[address] if time.monotonic() - song[1] < FORGET_S]
        self._songs[address] = still
        return len(still) + self._given_up[address] < SONGS_PER_VISITOR

    def enter(self, address: str, session: str | None):
        self._songs[address].append((session, time.monotonic()))

    def has(self, address: str, session: str | None) -> bool:
        """Whether a song of this session waits or is separated."""
        return any(song[0] == session for song in self._songs[address])

    def leave(self, address: str, session: str | None):
        """A song of this session was at the head of the queue and is done, so songs that were given up leave it too."""
        self._remove(address, session)
        self._given_up.clear()

    def give_up(self, address: str, session: str | None):
        """A song of this session shall not be separated; its place is free once the song before it is done."""
        if self._remove(address, session):
            self._given_up[address] += 1

    def _remove(self, address: str, session: str | None) -> bool:
        songs = self._songs[address]
        first = next((song for song in songs if song[0] == session), None)
        if first is not None:
            songs.remove(first)
        return first is not None
