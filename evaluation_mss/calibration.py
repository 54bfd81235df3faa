"""How sure masks may be, what generated stems add to them, and which output is best: chosen on validation songs.

    python -m evaluation_mss.calibration runs/separator/final --manifests data/validation data/free data/trackswitch

Masks are too sure of music unlike the training songs, so songs of several origins should take part. Scores are means
over the sources of the manifests, of `usdr` over songs and audible stems. Stems are mixed at equal loudness: in songs
as they are, quiet ones would decide. `mask_temperature`, `token_share` and the order of `outputs` are written to the
config.json of the folder. Prints one JSON line.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import pipeline

import mss_lm  # noqa: F401  (makes transformers know the separator)
from processing_mss import SeparationOptions, WindowEstimate, filter_windows, resample
from processing_mss.estimation_mss import WindowEstimator
from processing_mss.windowing_mss import split_windows

from .results import replace_text
from .signal_metrics import usdr
from .songs import EvaluationSong, find_excerpts

TEMPERATURES = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5)
TOKEN_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
MASKS_ALONE = 0.0
WORTH = 0.1  # dB that tokens must add before they are the default: they take many times as long


class Trial:
    """A song with what the model says of it, to be filtered with other masks as often as needed."""

    def __init__(self, pipe, song: EvaluationSong, output: str):
        self.song, self.stems, self.temperature = song, pipe.model.config.stems, pipe.model.config.mask_temperature
        processor, rate = pipe.processor, song.sampling_rate
        options = SeparationOptions(output=output, seed=0)
        options.check(pipe.model, processor)
        options = options.as_saved_with(pipe.model.config, pipe.model.generation_config)
        self.plan, self.rate = processor.plan(song.mixture, rate), processor.sampling_rate
        mono = resample(song.mixture.mean(dim=0), rate, self.rate)
        windows = split_windows(mono * self.plan.gain, self.plan.starts, self.plan.window)
        estimator, self.estimates = WindowEstimator(pipe.model, processor, options), []
        for indices in torch.arange(len(windows)).split(estimator.fitting_batch_size()):
            self.estimates += estimator.estimate(windows[indices], indices.tolist())

    def score(self, temperature: float, token_share: float) -> float:
        """`usdr`, mean of the audible stems, in dB."""
        chunks = filter_windows(
            (self._changed(estimate, temperature, token_share) for estimate in self.estimates),
            self.plan,
            self.rate,
            [self.song.mixture],
            token_share=token_share,
        )
        stems = dict(zip(self.stems, torch.cat(list(chunks), dim=-1).cpu()))
        return mean_usdr([stems[stem] for stem in self.song.stems], self.song)

    def _changed(self, estimate: WindowEstimate, temperature: float, token_share: float) -> WindowEstimate:
        """With masks of another temperature; without audio where it has no share."""
        masks = estimate.masks ** (self.temperature / temperature)
        audio = None if token_share == MASKS_ALONE else estimate.audio
        return WindowEstimate(estimate.num_samples, audio, masks / masks.sum(dim=0, keepdim=True))


def mean_usdr(estimates: Iterable[torch.Tensor], song: EvaluationSong) -> float:
    """Over the audible stems, in dB."""
    ratios = [usdr(estimate, reference) for estimate, reference in zip(estimates, song.references)]
    return torch.tensor(ratios).nanmean().item()


@torch.no_grad()
def calibrate(model_dir: Path, manifests: list[str], excerpt_s: float, with_tokens: bool) -> dict:
    """Choose and write the three fields (without tokens two); returns them with the scores they were chosen by.

    Raises:
        ValueError: the model has no masks, or no trained language model where its tokens take part, or there are no
            validation songs with audible stems.
    """
    pipe = pipeline("audio-source-separation", model=str(model_dir))
    config = pipe.model.config
    if not config.mask_head:
        raise ValueError(f"{model_dir} has no masks to calibrate: it was configured with mask_head=False.")
    output = "filtered" if with_tokens else "masked"
    trials, equal_shares = defaultdict(list), defaultdict(list)
    excerpts = find_excerpts(manifests, "validation", excerpt_s=excerpt_s, equal_loudness=True)
    for excerpt in tqdm(excerpts, desc="separating", unit="song"):
        song = excerpt.read(config.stems)
        if math.isnan(share := mean_usdr([song.mixture / len(song.stems)] * len(song.stems), song)):
            continue  # no stem is audible there
        trials[excerpt.song.source].append(Trial(pipe, song, output))
        equal_shares[excerpt.song.source].append(share)
    if not trials:
        raise ValueError(f"None of the {len(excerpts)} validation excerpts has an audible stem.")

    def of_sources(values: dict[str, list[float]]) -> dict[str, float]:
        means = {source: sum(scores) / len(scores) for source, scores in values.items()}
        return {"mean": sum(means.values()) / len(means), **means}

    def scores(temperature: float, token_share: float) -> dict[str, float]:
        return of_sources(
            {s: [trial.score(temperature, token_share) for trial in group] for s, group in trials.items()}
        )

    masked = {temperature: scores(temperature, MASKS_ALONE) for temperature in tqdm(TEMPERATURES, desc="temperatures")}
    temperature = best_of(masked)
    chosen = {"mask_temperature": temperature, "outputs": ["masked"]}
    filtered = {}
    if with_tokens:
        filtered = {share: scores(temperature, share) for share in tqdm(TOKEN_SHARES, desc="token shares")}
        chosen["token_share"] = best_of(filtered)
        tokens_help = filtered[chosen["token_share"]]["mean"] > masked[temperature]["mean"] + WORTH
        order = ["filtered", "masked"] if tokens_help else ["masked", "filtered"]
        chosen["outputs"] = [*order, "generated"]
    write_fields(model_dir, chosen)
    return chosen | {"equal_shares": of_sources(equal_shares), "masked": masked, "filtered": filtered}


def best_of(scores: dict[float, dict[str, float]]) -> float:
    """The value that has the best mean score."""
    return max(scores, key=lambda value: scores[value]["mean"])


def write_fields(model_dir: Path, fields: dict) -> None:
    """Change fields of config.json and leave the rest as it is."""
    path = model_dir / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    replace_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, help="folder of a separator with masks; its config.json is changed")
    parser.add_argument("--manifests", nargs="+", required=True, help="with songs of the split validation")
    parser.add_argument("--excerpt_s", type=float, default=20.0, help="from the middle of songs (default: %(default)s)")
    parser.add_argument("--masks_only", action="store_true", help="the language model is not trained yet")
    options = parser.parse_args()
    try:
        result = calibrate(options.model_dir, options.manifests, options.excerpt_s, not options.masks_only)
    except (ValueError, OSError) as error:
        print(f"calibration: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
