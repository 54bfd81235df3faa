"""Whether the index of an MPEG-4 file (m4a, mp4, mov) can be that of a file of its size.

FFmpeg makes an entry in memory for each packet that an index counts, once more for each part of an edit list that plays
it, and cannot be stopped meanwhile: a few bytes can count millions. In a whole file each packet has at least one byte.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

# FFmpeg looks into them wherever they are, and where it finds no index elsewhere, into boxes that are said to be free.
PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf", b"dinf", b"udta", b"wave"}
PARENTS |= {b"meta", b"sinf", b"schi", b"tref", b"clip", b"iprp", b"ipco", b"cmov", b"free", b"hoov"}
MAX_DEPTH = 12  # FFmpeg's is 10
MAX_INDEX_BYTES = 2**26  # of one that is compressed
SPARE_PACKETS = 1000
PIECE_SAMPLES = 1024  # of PCM, which FFmpeg takes at once


def counts_too_many_packets(file: io.BufferedIOBase, size: int) -> bool:
    """Whether a file of so many bytes counts more packets than it can hold; its place is moved.

    Other formats than MPEG-4 look like one box or two, and count none.
    """
    packets, track = 0, _Track()
    for name, head in _boxes(file, 0, size):
        if name == b"trak":
            packets, track = packets + track.packets(), _Track()
        track.add(name, head)
        if name in (b"trun", b"moof") or packets > size:  # a fragment need not have a track before it
            packets, track.fragments = packets + track.fragments, 0
        if packets > size + SPARE_PACKETS:
            return True
    return packets + track.packets() > size + SPARE_PACKETS


class _Track:
    """What the boxes of one track count."""

    def __init__(self):
        self.samples = self.fragments = self.edits = self.chunks = 0
        self._handlers, self._times, self._in_chunks = set(), set(), b""

    def add(self, name: bytes, head: bytes):
        numbers = struct.unpack(f">{len(head[:24]) // 4}I", head[: len(head[:24]) // 4 * 4]) + (0,) * 6
        if name in (b"stsz", b"stz2"):
            self.samples += numbers[2]
        elif name == b"trun":
            self.fragments += numbers[1]
        elif name == b"elst":
            self.edits += numbers[1]
        elif name in (b"stco", b"co64"):
            self.chunks += numbers[1]
        elif name == b"stts":
            self._times.add((numbers[1], numbers[3]))
        elif name == b"stsc":
            self._in_chunks += head[8 : 8 + 12 * numbers[1]]
        elif name == b"hdlr":
            self._handlers.add(head[8:12])

    def packets(self) -> int:
        samples = self.samples
        if self._times == {(1, 1)} and b"soun" in self._handlers and not self._handlers & {b"vide", b"subp", b"clcp"}:
            # Samples of PCM, or of the codecs of old QuickTime, that are counted one by one and taken by the chunk.
            samples, entries = 0, list(struct.iter_unpack(">III", self._in_chunks[: len(self._in_chunks) // 12 * 12]))
            for (first, in_chunk, _), (after, _, _) in zip(entries, [*entries[1:], (self.chunks + 1, 0, 0)]):
                samples += max(after - first, 0) * -(-in_chunk // PIECE_SAMPLES)
        return samples * max(self.edits // 2, 1) + self.fragments  # many begin with an edit that is a pause


def _boxes(file: io.BufferedIOBase, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Name of each box, also of those in others, and its first bytes; of tables that matter to the last entry, all."""
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        inside = start + 8
        if size == 1:  # the size does not fit into four bytes
            size, inside = int.from_bytes(file.read(8)), start + 16
        stop = end if size == 0 else min(start + size, end)
        if stop < inside:
            return
        head = file.read(stop - inside if name in (b"stsc", b"cmvd") else min(stop - inside, 24))
        yield name, head
        if name == b"cmvd":
            unpacker, unpacked = zlib.decompressobj(), b""
            with contextlib.suppress(zlib.error):
                unpacked = unpacker.decompress(head[4:], MAX_INDEX_BYTES)
            if unpacker.unconsumed_tail:
                yield b"trun", b"\xff" * 8  # counts too many, whatever it holds
            yield from _boxes(io.BytesIO(unpacked), 0, len(unpacked), depth + 1)
        elif name in PARENTS and depth < MAX_DEPTH:
            has_version = name == b"meta" and head.startswith(bytes(4))
            yield from _boxes(file, inside + 4 * has_version, stop, depth + 1)
        start = stop
