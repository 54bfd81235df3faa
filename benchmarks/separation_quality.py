"""What the choices between a codec's codes and finished stems are worth: filter, layers, decoding, candidates, windows.

    python -m benchmarks.separation_quality --codec runs/codec/final --manifests data/rendered data/free
    python -m benchmarks.separation_quality --model runs/separator/final --manifests data/rendered data/free

With --codec, true stems go through the codec and act as estimates: the most that any language model over it can reach.
With --model, the model separates. Songs are those of the validation and test splits, in stereo; of each, excerpts in
the middle. Scores are means over excerpts and audible stems: `usdr` in dB (higher is better), `mel`, the mean
difference of log-mel spectrograms (lower is better; 0.1 is 1 dB). Prints a table, then one JSON line.
"""

import argparse
import json
import time
from collections import defaultdict

import torch

import mss_lm  # noqa: F401
from data_mss.dataset import stem_paths
from data_mss.manifest import Song, read_manifest
from modeling_mss import HCodecModel
from processing_mss import AudioSourceSeparationPipeline, MssProcessor, read_audio, resample
from processing_mss.filtering_mss import wiener_filter
from training_mss.codec_losses import spectral_losses, usdr

RATE = 48000
WINDOW = 4 * RATE
STEMS = ["vocals", "drums", "bass", "other"]


def read_excerpt(song: Song, start_s: float, seconds: float) -> torch.Tensor:
    """Stems `(S, 2, T)` at 48 kHz, scaled so that the mixture's RMS is 0.1."""
    excerpt = torch.zeros(len(STEMS), 2, round(seconds * RATE))
    for row, stem in zip(excerpt, STEMS):
        for path in stem_paths(song, stem, STEMS):
            waveform, rate = read_audio(path)
            piece = torch.from_numpy(waveform[:, round(start_s * rate) : round((start_s + seconds) * rate)].copy())
            piece = resample(piece, rate, RATE)[:, : excerpt.shape[-1]]
            row[:, : piece.shape[1]] += piece
    return excerpt * (0.1 / excerpt.sum(dim=0).mean(dim=0).square().mean().sqrt().clamp(min=1e-4))


def find_excerpts(manifests: list[str], seconds: float, per_song: int) -> list[torch.Tensor]:
    songs = [song for manifest in manifests for song in read_manifest(manifest) if song.split != "train"]
    starts = [(index + 1) / (per_song + 1) for index in range(per_song)]
    return [read_excerpt(song, place * (song.duration - seconds), seconds) for song in songs for place in starts]


class Scores:
    """Sums of scores by method."""

    def __init__(self):
        self.values = defaultdict(lambda: defaultdict(list))

    def add(self, method: str, estimates: torch.Tensor, stems: torch.Tensor, seconds: float = 0.0):
        """Estimates and true stems `(S, C, T)`; mono estimates count for both channels."""
        estimates = estimates.expand_as(stems)
        ratios = usdr(estimates.flatten(1), stems.flatten(1))
        audible = ~ratios.isnan()
        mel = spectral_losses(estimates.mean(dim=1), stems.mean(dim=1), RATE, stft=False)["mel"]
        self.values[method]["usdr"].append(ratios[audible].mean().item())
        self.values[method]["mel"].append(mel[audible].mean().item())
        self.values[method]["seconds"].append(seconds)

    def report(self, benchmark: str):
        table = {
            method: {name: round(sum(values) / len(values), 3) for name, values in scores.items()}
            for method, scores in self.values.items()
        }
        for method, scores in table.items():
            print(f"{method:42s} usdr {scores['usdr']:7.2f} dB   mel {scores['mel']:.3f}   {scores['seconds']:6.2f} s")
        number = max(len(scores["usdr"]) for scores in self.values.values())
        print(json.dumps({"benchmark": benchmark, "excerpts": number, "scores": table}))


def add_bounds(scores: Scores, stems: torch.Tensor):
    mixture = stems.sum(dim=0)
    scores.add("mixture", mixture[None].expand_as(stems), stems)
    scores.add("mixture / 4", mixture[None].expand_as(stems) / 4, stems)
    scores.add("ideal ratio mask", wiener_filter(stems.mean(dim=1), mixture), stems)


@torch.no_grad()
def measure_codec(path: str, excerpts: list[torch.Tensor]):
    codec, scores = HCodecModel.from_pretrained(path).eval(), Scores()
    num_layers = codec.config.num_codebooks
    for stems in excerpts:
        mixture = stems.sum(dim=0)
        add_bounds(scores, stems)
        codes = codec.encode(stems.mean(dim=1).unfold(1, WINDOW, WINDOW).flatten(0, 1))
        for layers in sorted({1, 2, 4, 6, num_layers} & set(range(1, num_layers + 1))):
            audio = codec.decode(codes.acoustic_codes[:, :layers], codes.semantic_codes[:, :layers]).audio_values
            audio = audio.reshape(len(stems), -1)
            scores.add(f"{layers} layers: generated", audio[:, None], stems)
            filters = [(2.0, 0), (1.0, 0), (2.0, 1), (1.0, 1), (1.0, 2)]  # exponent, iterations of EM
            for exponent, iterations in filters if layers == num_layers else filters[:1]:
                started = time.perf_counter()
                filtered = wiener_filter(audio, mixture, exponent=exponent, iterations=iterations)
                name = f"{layers} layers: exponent {exponent:.0f}, EM {iterations}"
                scores.add(name, filtered, stems, time.perf_counter() - started)
    scores.report("separation_quality, true stems through the codec")


def measure_model(path: str, excerpts: list[torch.Tensor]):
    separate = AudioSourceSeparationPipeline(path, processor=MssProcessor.from_pretrained(path))
    scores = Scores()
    sampled = {"do_sample": True, "top_p": 0.9, "seed": 0}
    methods = {
        "generated, greedy": {"output": "generated"},
        "generated, sampled": {"output": "generated", **sampled},
        "filtered, greedy": {},
        "filtered, sampled": sampled,
        "filtered, greedy, expected": {"expected": True},
        "filtered, sampled, expected": {"expected": True, **sampled},
        "filtered, greedy, expected, EM 1": {"expected": True, "filter_iterations": 1},
        "filtered, greedy, no overlap": {"overlap": 0.0},
        "filtered, greedy, expected, overlap 0.25": {"expected": True, "overlap": 0.25},
        "filtered, 4 candidates": {"num_candidates": 4, "seed": 0},
        "filtered, 16 candidates": {"num_candidates": 16, "seed": 0, "batch_size": 2},
        "filtered, 4 candidates, expected": {"num_candidates": 4, "seed": 0, "expected": True},
    }
    for stems in excerpts:
        add_bounds(scores, stems)
        for name, options in methods.items():
            started = time.perf_counter()
            result = separate(stems.sum(dim=0).numpy(), sampling_rate=RATE, **options)
            by_name = {stem["label"]: torch.from_numpy(stem["audio"]) for stem in result}
            estimates = torch.stack([by_name[stem] for stem in STEMS])
            scores.add(name, estimates, stems, time.perf_counter() - started)
    scores.report("separation_quality, model")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--codec", help="folder of a whole codec")
    what.add_argument("--model", help="folder of a separator")
    parser.add_argument("--manifests", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=12.0, help="of an excerpt (default: %(default)s)")
    parser.add_argument("--per_song", type=int, default=1, help="excerpts of a song (default: %(default)s)")
    options = parser.parse_args()
    excerpts = find_excerpts(options.manifests, options.seconds, options.per_song)
    if options.codec:
        measure_codec(options.codec, excerpts)
    else:
        measure_model(options.model, excerpts)


if __name__ == "__main__":
    main()
