"""Layouts, levels and rates, as arrays and as files; and what is no array of audio at all."""

import io
import pathlib
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import EXACT, REFUSED, Input, Made, file_input
from tests.robustness.sounds import Encoded, by_libsndfile, song

ARRAY = ("array",)


def inputs() -> Iterator[Input]:
    yield from layout_inputs()
    yield from level_inputs()
    yield from type_inputs()
    yield from wrong_inputs()


def layout_inputs() -> Iterator[Input]:
    for channels in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 33, 100):
        expected = EXACT if channels <= 32 else REFUSED
        waveform = partial(song, 44100, channels, 22050)
        yield from both(f"{channels} channels", "layouts", expected, waveform, 44100, fast=channels == 33)
    for rate in (1, 100, 999, 1000, 4000, 8000, 11025, 32000, 47999, 48000, 96000, 192000, 384000, 10**6, 10**6 + 1):
        expected = EXACT if 1000 <= rate <= 10**6 else REFUSED
        waveform = partial(song, rate, 2, max(rate // 2, 10))
        yield from both(f"{rate} Hz", "layouts", expected, waveform, rate, fast=rate == 999)
    for samples in (1, 2, 10, 1000, 44099):
        waveform = partial(song, 44100, 2, samples)
        yield from both(f"{samples} samples", "layouts", EXACT, waveform, 44100, fast=samples == 1)


def level_inputs() -> Iterator[Input]:
    for name, expected, change in [
        ("silence", EXACT, lambda waveform: 0 * waveform),
        ("full scale", EXACT, np.sign),
        ("level 1e-9", EXACT, lambda waveform: waveform * np.float32(1e-9)),
        ("level 1e-30", EXACT, lambda waveform: waveform * np.float32(1e-30)),
        ("denormal", EXACT, lambda waveform: waveform * np.float32(1e-40)),
        ("40 dB too loud", EXACT, lambda waveform: 100 * waveform),
        ("200 dB too loud", EXACT, lambda waveform: waveform * np.float32(1e10)),
        ("700 dB too loud", EXACT, lambda waveform: waveform * np.float32(1e35)),
        ("one sample of silence that is loud", EXACT, impulse),
        ("a constant", EXACT, lambda waveform: np.full_like(waveform, 0.5)),
        ("one channel silent", EXACT, lambda waveform: waveform * np.float32([[1], [0]])),
        ("channels opposed", EXACT, lambda waveform: waveform[:1] * np.float32([[1], [-1]])),
        ("NaN", REFUSED, lambda waveform: np.full_like(waveform, np.nan)),
        ("one NaN", REFUSED, lambda waveform: with_sample(waveform, np.nan)),
        ("one infinity", REFUSED, lambda waveform: with_sample(waveform, np.inf)),
    ]:
        make = partial(changed, change)
        yield from both(name, "levels", expected, make, 44100, fast=name in ("silence", "one NaN"))


def changed(change) -> np.ndarray:
    return change(song(samples=22050)).astype(np.float32)


def impulse(waveform: np.ndarray) -> np.ndarray:
    return with_sample(0 * waveform, 1)


def with_sample(waveform: np.ndarray, value: float) -> np.ndarray:
    result = waveform.copy()
    result[-1, 1000] = value
    return result


def both(name: str, kind: str, expected: str, waveform: Callable[[], np.ndarray], rate: int, fast: bool = False):
    """As an array, which may be part of the fast subset, and as a wav file of floats."""
    yield Input(f"array: {name}", kind, expected, ARRAY, partial(make_array, waveform, rate), fast)
    like = partial(float_wav, waveform, rate)
    yield file_input(f"float wav: {name}", kind, expected, "song.wav", partial(content_of, like), like)


def float_wav(waveform, rate: int) -> Encoded:
    return Encoded("wav", by_libsndfile(waveform(), rate, "WAV", "FLOAT"), waveform(), rate, lossless=True)


def content_of(like) -> bytes:
    return like().content


def make_array(waveform, rate: int, folder: Path, elsewhere: Elsewhere) -> Made:
    return Made({"array": waveform(), "sampling_rate": rate}, waveform(), rate)


def type_inputs() -> Iterator[Input]:
    """Types and shapes that are audio: (what is given, what it sounds like)."""
    tensor = partial(torch.from_numpy, song())
    integers = np.round(song() * 2**15).astype(np.int16)
    for name, make in {
        "float64": lambda: (song().astype(np.float64), song()),
        "float16": lambda: (song().astype(np.float16), song().astype(np.float16)),
        "int16": lambda: (integers, song()),
        "int32": lambda: (integers.astype(np.int32) << 16, song()),
        "uint8": lambda: ((integers // 256 + 128).astype(np.uint8), integers // 256 / 128),
        "big-endian": lambda: (song().astype(">f4"), song()),
        "big-endian int16": lambda: (integers.astype(">i2"), song()),
        "one dimension": lambda: (song()[0], song()[:1]),
        "nested lists": lambda: (song()[:, :2000].tolist(), song()[:, :2000]),
        "every second sample": lambda: (song()[:, ::2], song()[:, ::2]),
        "backwards": lambda: (song()[:, ::-1], song()[:, ::-1]),
        "Fortran order": lambda: (np.asfortranarray(song()), song()),
        "read only": lambda: (read_only(song()), song()),
        "tensor": lambda: (tensor(), song()),
        "tensor of float64": lambda: (tensor().double(), song()),
        "tensor of bfloat16": lambda: (tensor().bfloat16(), tensor().bfloat16().float().numpy()),
        "tensor of float8": lambda: (tensor().to(torch.float8_e5m2), tensor().to(torch.float8_e5m2).float().numpy()),
        "tensor that needs gradients": lambda: (tensor().clone().requires_grad_(), song()),
        "tensor with strides": lambda: (tensor()[:, ::2], song()[:, ::2]),
        "expanded tensor": lambda: (tensor()[:1].expand(2, -1), song()[[0, 0]]),
        "conjugated view": lambda: (torch.complex(tensor(), tensor()).conj().real, song()),
        "parameter": lambda: (torch.nn.Parameter(tensor().clone()), song()),
        "masked array": lambda: (np.ma.masked_array(song(), mask=False), song()),
        "matrix": lambda: (np.matrix(song()), song()),
    }.items():
        yield Input(f"array: {name}", "types", EXACT, ARRAY, partial(make_typed, make), fast=name == "int16")
    for name, rate in {"np.int64": np.int64(44100), "np.uint16": np.uint16(44100)}.items():
        yield Input(f"rate of type {name}", "types", EXACT, ARRAY, partial(make_array, song, rate))
    raw = partial(make_source, lambda: {"raw": song(), "sampling_rate": 44100, "path": "x"}, song)
    yield Input("dictionary with raw and more", "types", EXACT, ARRAY, raw)


def read_only(waveform: np.ndarray) -> np.ndarray:
    copy = waveform.copy()
    copy.flags.writeable = False
    return copy


def make_typed(make, folder: Path, elsewhere: Elsewhere) -> Made:
    with warnings.catch_warnings(action="ignore"):  # NumPy would have nobody use matrices
        audio, reference = make()
        return Made({"array": audio, "sampling_rate": 44100}, np.asarray(reference, dtype=np.float64), 44100)


def make_source(source, like, folder: Path, elsewhere: Elsewhere) -> Made:
    return Made(source(), None if like is None else like(), 44100)


def wrong_inputs() -> Iterator[Input]:
    """What is refused; all made when they are needed."""
    for name, audio in {
        "empty": lambda: np.zeros(0, np.float32),
        "two empty channels": lambda: np.zeros((2, 0), np.float32),
        "no channels": lambda: np.zeros((0, 1000), np.float32),
        "0 dimensions": lambda: np.float32(1),
        "3 dimensions": lambda: song()[None],
        "transposed": lambda: song().T,
        "bool": lambda: song() > 0,
        "complex": lambda: song().astype(np.complex64),
        "int8": lambda: song().astype(np.int8),
        "uint16": lambda: song().astype(np.uint16),
        "int64": lambda: song().astype(np.int64),
        "object": lambda: song()[:, :100].astype(object),
        "strings": lambda: np.array(["a", "b"]),
        "dates": lambda: np.zeros(100, "datetime64[s]"),
        "records": lambda: np.zeros(100, [("left", "f4"), ("right", "f4")]),
        "float64 beyond float32": lambda: np.full((2, 1000), 1e300),
        "float64 NaN": lambda: np.full((2, 1000), np.nan),
        "float16 infinity": lambda: np.full((2, 1000), np.inf, np.float16),
        "ragged lists": lambda: [[0.0, 1.0], [0.0]],
        "list of strings": lambda: ["a", "b"],
        "list of integers": lambda: [[1, 2, 3]],
        "list of tensors": lambda: [torch.zeros(5), torch.zeros(3)],
        "None": lambda: None,
        "string": lambda: "song.wav",
        "bytes": lambda: b"song",
        "dictionary": lambda: {},
        "generator": lambda: (value for value in song()),
        "file": lambda: io.BytesIO(b"abc"),
        "function": lambda: len,
        "empty tensor": lambda: torch.zeros(2, 0),
        "tensor of 3 dimensions": lambda: torch.zeros(1, 2, 1000),
        "tensor of bool": lambda: torch.zeros(2, 1000, dtype=torch.bool),
        "tensor of complex": lambda: torch.zeros(2, 1000, dtype=torch.complex64),
        "tensor of int64": lambda: torch.zeros(2, 1000, dtype=torch.int64),
        "sparse tensor": lambda: torch.zeros(2, 1000).to_sparse(),
        "sparse tensor by rows": lambda: torch.zeros(2, 1000).to_sparse_csr(),
        "meta tensor": lambda: torch.zeros(2, 1000, device="meta"),
        "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(5), torch.zeros(3)]),
        "quantized tensor": lambda: torch.quantize_per_tensor(torch.zeros(2, 1000), 0.1, 0, torch.quint8),
        "tensor with NaN": lambda: torch.full((2, 1000), float("nan")),
    }.items():
        make = partial(make_refused, audio)
        yield Input(f"wrong array: {name}", "wrong types", REFUSED, ARRAY, make, fast=name in ("bool", "meta tensor"))
    for rate in (None, 0, -1, -44100, 44100.0, float("nan"), float("inf"), "44100", True, 2**70, 1 + 2j, [44100]):
        make = partial(make_source, partial(dict, array=song(), sampling_rate=rate), None)
        yield Input(f"rate {rate!r}", "wrong types", REFUSED, ARRAY, make, fast=rate in (None, 44100.0))
    for name, rate in {
        "array": np.array([44100]),
        "array of 0 dimensions": np.array(44100),
        "tensor": torch.tensor(44100),
        "np.float32": np.float32(44100),
        "Decimal": Decimal(44100),
        "Fraction": Fraction(44100),
        "bytes": b"44100",
    }.items():
        make = partial(make_source, partial(dict, array=song(), sampling_rate=rate), None)
        yield Input(f"rate of type {name}", "wrong types", REFUSED, ARRAY, make)
    for name, source in {
        "None": lambda: None,
        "a number": lambda: 5,
        "a bytearray": lambda: bytearray(b"RIFF"),
        "a memoryview": lambda: memoryview(b"RIFF"),
        "an open file": lambda: io.BytesIO(b"RIFF"),
        "a tuple": lambda: (song(), 44100),
        "a set": lambda: {"song.wav"},
        "a pure path": lambda: pathlib.PurePosixPath("no-such-file.wav"),
        "an empty dictionary": dict,
        "a dictionary without a rate": lambda: {"array": song()},
        "a dictionary without samples": lambda: {"sampling_rate": 44100},
        "a dictionary of wrong keys": lambda: {"audio": song(), "rate": 44100},
        "a dictionary of numbers": lambda: {1: 2, "a": 3},
        "a list of numbers": lambda: [0.1, 0.2],
        "a list of None": lambda: [None],
    }.items():
        yield Input(f"source: {name}", "wrong types", REFUSED, ARRAY, partial(make_source, source, None))


def make_refused(audio, folder: Path, elsewhere: Elsewhere) -> Made:
    with warnings.catch_warnings(action="ignore"):  # of what PyTorch calls a prototype
        return Made({"array": audio(), "sampling_rate": 44100})
