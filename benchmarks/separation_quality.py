"""What the choices between a codec's codes and finished stems are worth: filter, layers, decoding, candidates, windows.

    python -m benchmarks.separation_quality --codec runs/codec/final --manifests data/rendered data/free
    python -m benchmarks.separation_quality --model runs/separator/final --manifests data/rendered data/free

With --codec, true stems go through the codec and act as estimates: the most that any language model over it can reach.
With --model, the model separates. Songs are those of the validation and test splits, in stereo; of each, excerpts in
the middle. Scores are means over excerpts and audible stems: `usdr` and `si_sdr` in dB (higher is better), `mel`, the
mean difference of log-mel spectrograms (lower is better; 0.1 is 1 dB), `seam`, by how many dB `usdr` is worse where
windows meet. Prints a table, then one JSON line.
"""

import argparse
import json
import time
from collections import defaultdict

import torch
from training_mss.scores import si_sdr

import mss_lm  # noqa: F401
from data_mss.manifest import Song, read_manifest, stem_paths
from modeling_mss import HCodecModel, MssForConditionalGeneration
from processing_mss import AudioSourceSeparationPipeline, MssProcessor, read_audio, resample
from processing_mss.filtering_mss import wiener_filter
from processing_mss.windowing_mss import window_starts
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

    def add(self, method: str, estimates: torch.Tensor, stems: torch.Tensor, seconds: float = 0.0, seam: float = 0.0):
        """Estimates and true stems `(S, C, T)`; mono estimates count for both channels."""
        estimates = estimates.expand_as(stems)
        ratios = usdr(estimates.flatten(1), stems.flatten(1))
        audible = ~ratios.isnan()
        mel = spectral_losses(estimates.mean(dim=1), stems.mean(dim=1), RATE, stft=False)["mel"]
        self.values[method]["usdr"].append(ratios[audible].mean().item())
        self.values[method]["si_sdr"].append(si_sdr(estimates.flatten(1), stems.flatten(1)).nanmean().item())
        self.values[method]["mel"].append(mel[audible].mean().item())
        self.values[method]["seam"].append(seam)
        self.values[method]["seconds"].append(seconds)

    def report(self, benchmark: str):
        table = {
            method: {name: round(sum(values) / len(values), 3) for name, values in scores.items()}
            for method, scores in self.values.items()
        }
        for method, scores in table.items():
            values = " ".join(f"{name} {scores[name]:6.2f}  " for name in ("usdr", "si_sdr", "mel", "seam", "seconds"))
            print(f"{method:42s} {values}")
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


def seam_difference(estimates: torch.Tensor, stems: torch.Tensor, window: int, overlap: int) -> float:
    """By how many dB `usdr` is worse where windows meet than in their middles; 0 leaves nothing to hear."""
    overlap = max(overlap, window // 10)  # without an overlap, the same stretch around the step
    near = torch.zeros(stems.shape[-1], dtype=torch.bool)
    starts = window_starts(stems.shape[-1], window, overlap)
    for previous in starts[:-1]:
        near[previous + window - overlap : previous + window] = True
    middle, seam = (usdr(estimates[..., part].flatten(1), stems[..., part].flatten(1)) for part in (~near, near))
    return (middle - seam).nanmean().item()


def measure_model(path: str, excerpts: list[torch.Tensor]):
    model, processor = MssForConditionalGeneration.from_pretrained(path), MssProcessor.from_pretrained(path)
    separate = AudioSourceSeparationPipeline(model=model, processor=processor)
    scores = Scores()
    chosen = {"expected": False}
    draws = {"do_sample": True, "top_p": 0.9, "seed": 0}
    mean = {"seed": 0, "num_candidates": 4}
    methods = {
        "generated, greedy": {"output": "generated"},
        "generated, one draw": {"output": "generated", **draws},
        "generated, best of 4": {"output": "generated", "num_candidates": 4, "seed": 0},
        "generated, best of 16": {"output": "generated", "num_candidates": 16, "seed": 0, "batch_size": 2},
        "greedy": chosen,
        "greedy, expected": {},
        "one draw": {**draws, **chosen},
        "one draw, expected": draws,
        "best of 4": {**mean, **chosen, "combine": "best"},
        "best of 16": {**mean, **chosen, "num_candidates": 16, "combine": "best", "batch_size": 2},
        "mean of 4": {**mean, **chosen},
        "mean of 16": {**mean, **chosen, "num_candidates": 16, "batch_size": 2},
        "mean of 4, expected": mean,
        "mean of 16, expected": {**mean, "num_candidates": 16, "batch_size": 2},
        "mean of 4, expected, EM 1": {**mean, "filter_iterations": 1},
        "mean of 4, expected, overlap 0": {**mean, "overlap": 0.0},
        "mean of 4, expected, overlap 0.25": {**mean, "overlap": 0.25},
        "mean of 4, expected, overlap 0.5": {**mean, "overlap": 0.5},
    }
    for stems in excerpts:
        add_bounds(scores, stems)
        for name, options in methods.items():
            plan = separate.processor.window_layout(stems.shape[-1], RATE, overlap=options.get("overlap"))
            started = time.perf_counter()
            result = separate(stems.sum(dim=0).numpy(), sampling_rate=RATE, **options)
            seconds = time.perf_counter() - started
            by_name = {stem["label"]: torch.from_numpy(stem["audio"]) for stem in result}
            estimates = torch.stack([by_name[stem] for stem in STEMS]).expand_as(stems)
            scores.add(name, estimates, stems, seconds, seam_difference(estimates, stems, plan.window, plan.overlap))
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
