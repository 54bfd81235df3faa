"""How long separations take on this machine, and what of it is spent where; the peers on the same song.

One run measures all, so that its numbers belong together. See `run_benchmark` for what it gives.
"""

import functools
import gc
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers

from data_mss.labelling import Teacher
from modeling_mss import MssConfig, MssForConditionalGeneration
from processing_mss import AudioReader, MssFeatureExtractor, MssProcessor, resample, write_audio

from .benchmark_stages import SEED, StagedSeparation, synchronize, write_stems
from .decode_cost import captured_equal_share, cuda_graphs, describe_decoding, machine_rates

RATE = 44100
ENOUGH_S = 10.0  # of measuring one thing: it is not repeated any more
EQUALITY_S = 7.0  # of the song: two windows
WARM_UP_S = 4.0  # of the song, on a CPU


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Args:
        name: of the separator.
        pipe: its pipeline, on its device.
        outputs: of the separator.
        peers: by name, see `find_peer`.
        seconds: of the song.
        runs: of which medians are taken; fewer of what takes longer than `ENOUGH_S`.
        progress: called with what is measured next.
    """

    name: str
    pipe: transformers.Pipeline
    outputs: list[str]
    peers: dict[str, Callable[[torch.device], Teacher]]
    seconds: float
    runs: int
    progress: Callable[[str], None]


def run_benchmark(benchmark: Benchmark) -> dict:
    """Measure all of it.

    Returns:
        `machine`: names and versions. `song`, `model`, `peers`: what was separated by what. `machine_rates`: see there.
        `captured_equal_share`: on CUDA, see there; `captured_error` in its place if steps cannot be captured.
        `separations`: what `measure` gives, by output (array to stems), output with "_files" (file to files), and peer
        (array to stems).
        `ratios`: by peer and output, `wall` and `cpu` time of the output over that of the peer.
        `stages`: wall seconds by output and stage, see `benchmark_stages.py`; without captured graphs.
        `decoding`: of "filtered" if it is among the outputs, else of "generated", see `describe_decoding`; "plain", and
        on CUDA "captured" too.
    """
    model, processor = benchmark.pipe.model, benchmark.pipe.processor
    audio = made_song(benchmark.seconds)
    layout = processor.window_layout(audio.shape[-1], RATE)
    result = {
        "benchmark": "separation",
        "machine": describe_machine(model.device),
        "song": {"seconds": benchmark.seconds, "sampling_rate": RATE, "channels": 2, "windows": layout.num_windows},
        "model": {"name": benchmark.name, **describe_model(model)},
        "peers": {"names": list(benchmark.peers), "weights": "random", "dtype": "float32"},
    }
    benchmark.progress("the machine: copies and matrix multiplications")
    result["machine_rates"] = machine_rates(model.device, model.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "song.wav")
        write_audio(path, audio, RATE)
        separations = measure_outputs(benchmark, audio, path)
        result |= measure_stages(benchmark, path, result["machine_rates"])
        separations |= {name: measure_peer(benchmark, audio, name) for name in benchmark.peers}
        if model.device.type == "cuda" and result["decoding"]:
            result |= measure_captured(benchmark, audio, path, result)  # last: the rest is measured whatever happens
    ratios = {
        peer: {output: ratio(separations[output], separations[peer]) for output in benchmark.outputs}
        for peer in benchmark.peers
    }
    return result | {"separations": separations, "ratios": ratios}


def measure_outputs(benchmark: Benchmark, audio: np.ndarray, path: str) -> dict[str, dict]:
    """Whole separations: array to stems, and file to files in the file's folder."""
    pipe, results = benchmark.pipe, {}
    for output in benchmark.outputs:
        separate = functools.partial(pipe, sampling_rate=RATE, output=output, seed=SEED)
        benchmark.progress(f"{output}, array to stems")
        separate(warm_up_song(audio, pipe.model.device))
        results[output] = measure(functools.partial(separate, audio), benchmark)
        benchmark.progress(f"{output}, file to files")
        results[f"{output}_files"] = measure(functools.partial(separate_file, pipe, path, output), benchmark)
    return results


def separate_file(pipe: transformers.Pipeline, path: str, output: str) -> None:
    """Write the stems beside the song."""
    with AudioReader(path) as reader:
        stream = pipe.stream(reader, output=output, seed=SEED)
        write_stems(stream, stream.labels, stream.sampling_rate, stream.num_samples, Path(path).parent)


def measure_peer(benchmark: Benchmark, audio: np.ndarray, name: str) -> dict[str, float]:
    """A peer, array to stems; it is built for that, and goes again."""
    benchmark.progress(f"{name}, array to stems")
    device = benchmark.pipe.model.device
    teacher = benchmark.peers[name](device)
    waveform = resample(torch.from_numpy(audio), RATE, teacher.sampling_rate)
    teacher.separate(warm_up_song(waveform, device))
    parameters = sum(weight.numel() for weight in teacher.model.parameters())
    return measure(functools.partial(teacher.separate, waveform), benchmark) | {"parameters": parameters}


def measure_stages(benchmark: Benchmark, path: str, rates: dict[str, float]) -> dict[str, dict]:
    """`stages` and `decoding` of `run_benchmark`, without what is captured."""
    model, stages, decoding = benchmark.pipe.model, {}, {}
    decoded = next((output for output in ("filtered", "generated") if output in benchmark.outputs), None)
    for output in benchmark.outputs:
        benchmark.progress(f"{output}, stage by stage")
        separation = StagedSeparation(model, benchmark.pipe.processor, output)
        with cuda_graphs(captured=False):
            separation(path, Path(path).parent)
        stages[output] = {stage: seconds for stage, seconds in separation.seconds.items() if seconds > 0}
        if output == decoded:
            plain = describe_decoding(separation.batches, model.config, model.dtype.itemsize, rates)
            decoding = {"output": output, "plain": plain}
    return {"stages": stages, "decoding": decoding}


def measure_captured(benchmark: Benchmark, audio: np.ndarray, path: str, result: dict) -> dict:
    """What `run_benchmark` gives of captured graphs, beside the `decoding` that it has in `result`."""
    model, processor = benchmark.pipe.model, benchmark.pipe.processor
    separation = StagedSeparation(model, processor, result["decoding"]["output"])
    benchmark.progress("captured graphs: decoding, and tokens with them and without")
    try:
        with cuda_graphs(captured=True):
            for _ in range(2):  # the first one captures
                separation(path, Path(path).parent)
        captured = describe_decoding(separation.batches, model.config, model.dtype.itemsize, result["machine_rates"])
        inputs = processor(audio[:, : round(EQUALITY_S * RATE)], sampling_rate=RATE)
        equal = captured_equal_share(model, inputs.to(model.device))
    except RuntimeError as error:  # torch's, of CUDA and of its graphs
        return {"captured_error": str(error)}
    return {"decoding": result["decoding"] | {"captured": captured}, "captured_equal_share": equal}


def measure(call: Callable[[], object], benchmark: Benchmark) -> dict[str, float]:
    """Medians of some runs.

    Returns:
        runs, wall_seconds, cpu_seconds (of all threads), times_real_time, cpu_seconds_per_second (of the song), and
        peak_bytes: of tensors on a GPU, elsewhere of the whole process; the separator is a part of it in any case.
    """
    walls, processors, device = [], [], benchmark.pipe.model.device
    gc.collect()
    reset_peak(device)
    while len(walls) < benchmark.runs and sum(walls) < ENOUGH_S:
        synchronize(device)
        wall, processor = time.perf_counter(), time.process_time()
        call()
        synchronize(device)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    wall, processor = statistics.median(walls), statistics.median(processors)
    return {
        "runs": len(walls),
        "wall_seconds": wall,
        "cpu_seconds": processor,
        "times_real_time": benchmark.seconds / wall,
        "cpu_seconds_per_second": processor / benchmark.seconds,
        "peak_bytes": peak_bytes(device),
    }


def ratio(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Time of one over that of the other."""
    return {kind: ours[f"{kind}_seconds"] / theirs[f"{kind}_seconds"] for kind in ("wall", "cpu")}


def reset_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew. Where the system cannot do that, it goes on counting from the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is used now
    except OSError:
        pass


def peak_bytes(device: torch.device) -> int:
    """Most memory since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def made_song(seconds: float) -> np.ndarray:
    """Stereo noise `(2, n)` float32 at `RATE`, of 0.1 root mean square: what a song is does not change the work."""
    return 0.1 * np.random.default_rng(0).standard_normal((2, round(seconds * RATE)), dtype=np.float32)


def warm_up_song(audio: np.ndarray | torch.Tensor, device: torch.device) -> np.ndarray | torch.Tensor:
    """On a GPU all of it, since kernels and graphs depend on shapes; else a few seconds."""
    return audio if device.type == "cuda" else audio[:, : round(WARM_UP_S * RATE)]


def random_separator(dtype: torch.dtype, device: torch.device) -> tuple[MssForConditionalGeneration, MssProcessor]:
    """The paper's separator with the codec at its published size, and random weights."""
    config = MssConfig(untrained=True)
    torch.manual_seed(0)
    with device:  # a GPU draws 2 billion numbers in no time
        model = MssForConditionalGeneration(config).eval()
    if dtype != torch.float32:
        with tempfile.TemporaryDirectory() as folder:  # loading leaves those parts in float32 that need it
            model.to(dtype).save_pretrained(folder)
            model = MssForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model, MssProcessor(MssFeatureExtractor(), stems=config.stems)


def describe_model(model) -> dict:
    """Size, dtype, and whether weights are random."""
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weights": "random" if model.config.untrained else "trained",
        "dtype": str(model.dtype).removeprefix("torch."),
        "candidates": model.config.num_candidates,
    }


def describe_machine(device: torch.device) -> dict:
    """Device, processor, threads, versions and date."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }


def processor_name() -> str:
    """What Linux calls it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
