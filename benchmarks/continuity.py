"""Windows that go on from the codes at the end of the one before, against windows that know nothing of each other.

    python -m benchmarks.continuity --model runs/separator/final --manifests data/rendered data/free

Continued windows have to be generated one after the other; independent ones go in one batch. Scores are those of
`benchmarks.separation_quality`, of the filtered stems and of the generated ones, cross-faded; songs alike. Prints a
table, then one JSON line.
"""

import argparse
import time

import torch

import mss_lm  # noqa: F401
from modeling_mss import MssForConditionalGeneration
from processing_mss import MssProcessor, WindowEstimate, filter_windows
from processing_mss.windowing_mss import overlap_add, split_windows, window_starts

from .separation_quality import RATE, Scores, find_excerpts, seam_difference

DECODING = {"greedy": {}, "one draw": {"do_sample": True, "top_p": 0.9}}


def generate_continued(model, features: torch.Tensor, prompt_frames: int, seeds: list[int], **options) -> torch.Tensor:
    """Codes `(W, S, 2 F, Q)`; the first frames of each window are the last ones of the window before."""
    codes = model.generate(features[:1], seed=seeds[:1], **options)
    windows = [codes]
    for index in range(1, len(features)):
        prompt = windows[-1][:, :, -2 * prompt_frames :]
        prompted = {"prompt_codes": prompt, "prompt_frames": prompt_frames, "seed": seeds[index : index + 1]}
        windows.append(model.generate(features[index : index + 1], **prompted, **options))
    return torch.cat(windows)


@torch.no_grad()
def measure(path: str, excerpts: list[torch.Tensor], prompt_frames: int):
    model, processor = MssForConditionalGeneration.from_pretrained(path).eval(), MssProcessor.from_pretrained(path)
    window, overlap, scores = processor.window_samples(), prompt_frames * processor.code_hop_length, Scores()
    for stems in excerpts:
        mixture = stems.sum(dim=0)
        starts = window_starts(stems.shape[-1], window, overlap)
        starts = [start for start in starts[:-1] if start + window <= stems.shape[-1]]  # whole steps, so that codes fit
        length = starts[-1] + window
        mixture, references = mixture[:, :length], stems[..., :length]
        windows = split_windows(mixture.mean(dim=0), starts, window)
        features = processor.feature_extractor(windows[:, None], sampling_rate=RATE)["input_features"]
        seeds = model.derive_seeds(0, range(len(starts)))
        for decoding, options in DECODING.items():
            for name in ("independent", "continued"):
                started = time.perf_counter()
                if name == "continued":
                    codes = generate_continued(model, features, prompt_frames, seeds, **options)
                else:
                    codes = model.generate(features, seed=seeds, **options)
                seconds = time.perf_counter() - started
                audio = model.decode_codes(codes)
                generated = overlap_add(audio, starts, overlap, length)[:, None].expand_as(references)
                estimates = (WindowEstimate(window.shape[-1], window) for window in audio)
                filtered = filter_windows(estimates, starts, overlap, 1.0, RATE, [mixture], length, RATE)
                for output, estimates in (("generated", generated), ("filtered", torch.cat(list(filtered), dim=-1))):
                    seam = seam_difference(estimates, references, window, overlap)
                    scores.add(f"{output}, {decoding}, {name}", estimates, references, seconds, seam)
    scores.report("continuity")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a separator")
    parser.add_argument("--manifests", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=24.0, help="of an excerpt (default: %(default)s)")
    parser.add_argument("--prompt_frames", type=int, default=3, help="of 80 ms, the overlap (default: %(default)s)")
    options = parser.parse_args()
    measure(options.model, find_excerpts(options.manifests, options.seconds, per_song=1), options.prompt_frames)


if __name__ == "__main__":
    main()
