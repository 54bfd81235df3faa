"""The bytes of an audio file, also without the tags around the sound."""

import io
import os


class AudioReadError(ValueError):
    """A file is missing, empty, too long, too damaged, NaN in places, or nothing that is read as audio."""


class FilePart:
    """A file from one place to another, as a file to read."""

    def __init__(self, file: io.BufferedIOBase, start: int, end: int):
        self._file, self._start, self._end, self.size = file, start, end, end - start
        self.seek(0)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self.tell(), self.size)[whence]
        if place < 0:
            raise ValueError("There is no place before the beginning.")
        return self._file.seek(self._start + place) - self._start

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(max(0, min(size, self._end - self._file.tell())))
        except OSError as error:
            raise AudioReadError(f"its bytes cannot be read: {error.strerror}.") from error


def whole_file(file: io.BufferedIOBase) -> FilePart:
    return FilePart(file, 0, file.seek(0, os.SEEK_END))
