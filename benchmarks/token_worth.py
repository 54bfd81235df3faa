"""Do tokens earn their place beside masks? Two ways to use them where masks are unsure, on validation songs.

    python -m benchmarks.token_worth --model pretrained_mss --train data/rendered_a data/free \
        --validate data/validation_instruments data/free data/trackswitch --work_dir runs/token_worth

`filtered` has a stem's share of a bin as mask^(1 - a) * share^a, with one a for all bins. Compared with `masked` are

- rules: a = a0 + a1 * H^p where the masks' entropy H (1: all stems alike) is above h, else a0;
- a refiner: three convolutions over time and mel bands that correct the masks' logits, from the masks, the mixture and
  the generated stems (log-mel), learned by `mask_loss` from crops of `--train` and stems sampled for them as `filtered`
  has them. Its control has zeros for generated stems, and else the same crops, steps and first weights.

First, crops with all that a refiner reads are written to `--work_dir`, which takes longest and goes on where it was
stopped: windows of sources alike often, remixed half of the time, stems within 6 dB of equal loudness. Then refiners
learn, one of each kind for each of `--seeds`, from all but an eighth of them; `crop_loss` is that of this eighth. Then
songs of the split validation, 20 s at equal loudness, are scored as in `evaluation_mss.calibration`: `usdr`, means over
audible stems, songs of a source, sources. `by_entropy` is the masks' cross-entropy in these songs, weighted by
magnitude, in bins of each fifth of H, for values of a: what tokens know where masks do not.

Prints a table and ends in one JSON line.
"""

import argparse
import json
import sys
from collections import defaultdict
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import pipeline

import mss_lm  # noqa: F401  (makes transformers know the separator)
from data_mss.dataset import StemDataset
from data_mss.manifest import read_manifest
from evaluation_mss.calibration import Trial, mean_usdr
from evaluation_mss.songs import Excerpt, at_equal_loudness, find_excerpts
from evaluation_mss.summary import bootstrap_interval
from modeling_mss.masks_mss import FLOOR, mask_loss, scaled_log_mel
from processing_mss import SeparationOptions, WindowEstimate, filter_windows, resample
from processing_mss import filtering_mss as filtering
from processing_mss.estimation_mss import WindowEstimator
from processing_mss.feature_extraction_mss import log_mel_spectrogram, mel_power_spectrogram
from processing_mss.windowing_mss import split_windows

EXCERPT_S = 20.0
MAX_LEVEL_DB = 6.0  # of a stem of a training crop, beside equal loudness
WIDTH, PIECE, BATCH = 24, 50, 8  # of a refiner: channels; frames (1 s) and number of what a step sees
LEARNING_RATE = 2e-3
GROUPS, SHARES = 5, (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)  # of `by_entropy`: parts of H from 0 to 1, values of a
RULES = [  # (a0, a1, p, h)
    *((a, 0, 0, 0) for a in (0.05, 0.1, 0.2)),
    *((a0, a1, p, 0) for a0 in (0, 0.05) for p in (1, 3) for a1 in (0.1, 0.2, 0.4)),
    *((0, a1, 0, h) for h in (0.5, 0.8) for a1 in (0.1, 0.2, 0.4)),
]


def planes_of(estimates: list[WindowEstimate], windows: torch.Tensor, stems: torch.Tensor) -> dict[str, torch.Tensor]:
    """B windows `(B, T)` and their true stems `(B, S, T)` -> log_masks, generated and stem_powers `(B, S, L, M)`, and
    mixture `(B, L, M)`."""
    audio = torch.stack([estimate.audio for estimate in estimates])
    candidates = log_mel_spectrogram(audio.reshape(len(windows), -1, *audio.shape[-2:]))
    return {
        "log_masks": torch.stack([estimate.masks for estimate in estimates]).clamp(min=1e-6).log(),
        "generated": candidates.exp().mean(dim=1).log(),
        "mixture": log_mel_spectrogram(windows),
        "stem_powers": mel_power_spectrogram(stems),
    }


def write_crops(pipe, weights: bytes, manifests: list[str], num_crops: int, folder: Path) -> dict[str, torch.Tensor]:
    """`planes_of` training crops, in bfloat16, from files of a batch each; those that are there are kept.

    Raises:
        ValueError: the folder has crops of another model, of other songs or in other batches, or there are no training
            songs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, processor = pipe.model.config, pipe.processor
    options = SeparationOptions(output="filtered", seed=0)
    options.check(pipe.model, processor)
    estimator = WindowEstimator(pipe.model, processor, options.as_saved_with(config, pipe.model.generation_config))
    songs = [song for path in manifests for song in read_manifest(path) if song.split == "train"]
    batches = torch.arange(num_crops).split(estimator.fitting_batch_size())
    facts = {"weights": sha256(weights).hexdigest(), "model": config.to_dict(), "num_crops": num_crops}
    facts |= {"generation": pipe.model.generation_config.to_dict(), "songs": [vars(song) for song in songs]}
    facts |= {"batch_size": len(batches[0])}
    mark, text = folder / "made_from.json", json.dumps(facts, indent=1, default=str)
    before = mark.read_text(encoding="utf-8") if mark.exists() else None
    if before != text and any(folder.glob("*.pt")):
        raise ValueError(
            f"{folder} has crops of another model, other songs or another number: choose another --work_dir."
        )
    mark.write_text(text, encoding="utf-8")
    draws = {"remix_probability": 0.5, "audible_probability": 0.7, "source_weights": {song.source: 1 for song in songs}}
    dataset = StemDataset(songs, config.stems, crop_s=processor.window_s, epoch_size=num_crops, **draws)
    parts = []
    for indices in tqdm(batches, desc="crops", unit="batch"):
        path = folder / f"{int(indices[0]):06d}.pt"
        if not path.exists():
            stems = torch.stack([with_levels(dataset[index]["stems"], index) for index in indices.tolist()])
            rms = stems.sum(dim=1).square().mean(dim=-1).sqrt().clamp(min=1e-5)
            stems = stems * (processor.input_rms / rms)[:, None, None]
            crops = planes_of(estimator.estimate(stems.sum(dim=1), indices.tolist()), stems.sum(dim=1), stems)
            part = path.with_suffix(".part")
            torch.save({name: values.bfloat16() for name, values in crops.items()}, part)
            part.rename(path)
        parts.append(torch.load(path))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def with_levels(stems: torch.Tensor, seed: int) -> torch.Tensor:
    """Stems of a crop `(S, T)` at equal loudness, each up to `MAX_LEVEL_DB` louder or quieter."""
    levels = torch.rand(len(stems), 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return at_equal_loudness(stems[:, None])[:, 0] * 10 ** (levels * MAX_LEVEL_DB / 20)


class Refiner(nn.Module):
    """Log-masks and generated log-mel `(B, S, L, M)`, mixture `(B, L, M)` -> corrected log-masks."""

    def __init__(self, num_stems: int, with_tokens: bool):
        super().__init__()
        self.with_tokens = with_tokens
        self.layers = nn.Sequential(
            nn.Conv2d(2 * num_stems + 2, WIDTH, 5, padding=2),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, num_stems, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, log_masks: torch.Tensor, generated: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        heard, tokens = scaled_log_mel(mixture)[:, None], scaled_log_mel(generated) * float(self.with_tokens)
        band = torch.linspace(-1, 1, heard.shape[-1]).expand_as(heard)  # how high: what is bass, and what cymbals
        update = self.layers(torch.cat((log_masks.clamp(min=FLOOR) / 2 + 1, tokens, heard, band), dim=1))
        return (log_masks + update).log_softmax(dim=1)


def train_refiner(crops: dict[str, torch.Tensor], with_tokens: bool, seed: int, num_steps: int) -> Refiner:
    """Adam with a learning rate that falls to 0 linearly, on pieces of crops."""
    torch.manual_seed(seed)
    refiner = Refiner(crops["log_masks"].shape[1], with_tokens)
    optimizer = torch.optim.Adam(refiner.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    num_crops, num_frames = crops["mixture"].shape[:2]
    for _ in tqdm(range(num_steps), desc=f"refiner {'with' if with_tokens else 'without'} tokens", unit="step"):
        rows, first = torch.randint(num_crops, (BATCH,)), int(torch.randint(num_frames - PIECE + 1, ()))
        piece = {name: values[rows, ..., first : first + PIECE, :].float() for name, values in crops.items()}
        powers = piece.pop("stem_powers")
        loss = mask_loss(refiner(**piece), powers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return refiner


def refined(crops: dict[str, torch.Tensor], refiner: Refiner | None) -> tuple[torch.Tensor, float]:
    """Masks of crops `(B, S, L, M)` and their `mask_loss`; as they were without a refiner."""
    inputs = {name: values.float() for name, values in crops.items()}
    powers = inputs.pop("stem_powers")
    log_masks = refiner(**inputs) if refiner else inputs["log_masks"]
    return log_masks.exp(), mask_loss(log_masks, powers).item()


def masks_and_shares(trial: Trial) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all bins of a song, `(S, F, L)` each: what `filter_windows` combines, as it has them block by block."""
    plan, n_fft = trial.plan, filtering.fft_size(trial.plan.sampling_rate)
    windows = list(filtering.place_windows(trial.estimates, plan, trial.rate, n_fft))
    num_frames = plan.num_samples // (n_fft // 4) + 1
    masks = filtering._blend_masks(windows, n_fft // 4 * torch.arange(num_frames))
    masks = filtering.masks_at_bins(masks, trial.rate, n_fft, plan.sampling_rate)
    return masks, filtering.ratio_masks(filtering._sum_powers(windows, 0, num_frames))


def entropy(masks: torch.Tensor) -> torch.Tensor:
    """`(..., S, F, L)` -> `(..., F, L)`, from 0 (all is one stem's) to 1 (all stems alike)."""
    return torch.special.entr(masks).sum(dim=-3) / np.log(masks.shape[-3])


def score_rules(trial: Trial) -> dict[tuple, float]:
    """`usdr` of a song under each of RULES."""
    masks, shares = masks_and_shares(trial)
    unsure, scores = entropy(masks), {}
    spectrum = filtering.stft(trial.song.mixture, filtering.fft_size(trial.song.sampling_rate))
    for a0, a1, p, h in RULES:
        combined = filtering.combine_masks(masks, shares, a0 + a1 * unsure**p * (unsure > h))
        stems = filtering.istft(combined[:, None] * spectrum, trial.song.mixture.shape[-1])
        scores[a0, a1, p, h] = mean_usdr(stems, trial.song)
    return scores


def score_masks(trial: Trial, masks: torch.Tensor) -> float:
    """`usdr` of a song under masks `(W, S, L, M)` of its windows alone."""
    estimates = [WindowEstimate(trial.plan.window, masks=window) for window in masks]
    pieces = list(filter_windows(estimates, trial.plan, trial.rate, [trial.song.mixture]))
    return mean_usdr(torch.cat(pieces, dim=-1), trial.song)


def planes_of_song(trial: Trial) -> dict[str, torch.Tensor]:
    """`planes_of` all windows of a song."""
    stems = resample(trial.song.references.mean(dim=1), trial.song.sampling_rate, trial.rate) * trial.plan.gain
    windows = split_windows(stems, trial.plan.starts, trial.plan.window)
    return planes_of(trial.estimates, windows.sum(dim=1), windows)


def by_entropy(planes: dict[str, torch.Tensor]) -> torch.Tensor:
    """`(GROUPS, 1 + len(SHARES))`: of bins whose masks' H lies in each part, the magnitude, and the cross-entropy times
    magnitude for each a."""
    masks, powers = planes["log_masks"].exp(), planes["stem_powers"]
    shares = (2 * planes["generated"]).softmax(dim=1)  # of powers
    magnitude, true = powers.sum(dim=1).sqrt(), powers / powers.sum(dim=1, keepdim=True).clamp(min=1e-10)
    combined = (filtering.combine_masks(masks, shares, a) for a in SHARES)
    values = [magnitude, *(-magnitude * (true * guess.log()).sum(dim=1) for guess in combined)]
    group = (entropy(masks) * GROUPS).long().clamp(0, GROUPS - 1)
    return torch.stack([torch.stack([value[group == part].sum() for value in values]) for part in range(GROUPS)])


def summarize(songs: list[dict], name: str) -> dict:
    """Of one setting: by source and in their mean; above `masked`, with 95 % intervals where songs are several."""
    pairs = defaultdict(list)
    for song in songs:
        pairs[song["source"]].append((song["scores"][name], song["scores"][name] - song["scores"]["masked"]))
    means = {source: np.mean(values, axis=0) for source, values in pairs.items()}
    means = {"mean": np.mean(list(means.values()), axis=0), **means}
    intervals = {source: bootstrap_interval(np.array(values)[:, 1:], seed=0) for source, values in pairs.items()}
    usdr, gains = ({source: float(mean[column]) for source, mean in means.items()} for column in (0, 1))
    return {"usdr": usdr, "gains": gains, "intervals": intervals}


def score_song(pipe, excerpt: Excerpt, refiners: dict[str, Refiner | None]) -> dict:
    """All settings of one song; what `songs` of the JSON line holds, and `by_entropy`."""
    trial = Trial(pipe, excerpt.read(pipe.model.config.stems), "filtered")
    planes = planes_of_song(trial)
    found = {name: refined(planes, refiner) for name, refiner in refiners.items()}
    scores = {name: score_masks(trial, masks) for name, (masks, _) in found.items()}
    scores |= {"a = {} + {} H^{}, H > {}".format(*rule): score for rule, score in score_rules(trial).items()}
    for kind in ("with", "without"):
        of_seeds = [score for name, score in scores.items() if name.startswith(f"refiner {kind} ")]
        scores[f"refiner {kind} tokens, mean of seeds"] = sum(of_seeds) / len(of_seeds)
    losses = {"mask_loss": {name: loss for name, (_, loss) in found.items()}, "by_entropy": by_entropy(planes)}
    return {"song": excerpt.name, "source": excerpt.song.source, "scores": scores, **losses}


def run(options: argparse.Namespace) -> dict:
    """Crops, refiners, scores; what the JSON line holds. Raises ValueError or OSError for songs or models of no use."""
    excerpts = find_excerpts(options.validate, "validation", excerpt_s=EXCERPT_S, equal_loudness=True)
    pipe = pipeline("audio-source-separation", model=options.model, device="cpu")  # as songs and refiners are
    with torch.no_grad():
        weights = Path(options.model, "model.safetensors").read_bytes()
        crops = write_crops(pipe, weights, options.train, options.num_crops, options.work_dir / "crops")
    num_others = options.num_crops // 8
    learned = {name: values[num_others:] for name, values in crops.items()}
    others = {name: values[:num_others] for name, values in crops.items()}
    refiners = {"masked": None}
    for kind, seed in product(("with", "without"), options.seeds):
        name = f"refiner {kind} tokens, seed {seed}"
        refiners[name] = train_refiner(learned, kind == "with", seed, options.num_steps)
    with torch.no_grad():
        losses = {name: refined(others, refiner)[1] for name, refiner in refiners.items()}
        songs = [score_song(pipe, excerpt, refiners) for excerpt in tqdm(excerpts, desc="songs", unit="song")]
    sums = defaultdict(int)
    for song in songs:
        sums[song["source"]] += song.pop("by_entropy")
    shares = {source: (table[:, 0] / table[:, 0].sum()).tolist() for source, table in sums.items()}
    means = {source: (table[:, 1:] / table[:, :1].clamp(min=1e-9)).tolist() for source, table in sums.items()}
    return {
        "benchmark": "token_worth",
        "options": {name: str(value) for name, value in vars(options).items()},
        "settings": {name: summarize(songs, name) for name in songs[0]["scores"]},
        "crop_loss": losses,
        "by_entropy": {"magnitude": shares, "cross_entropy": means},
        "songs": songs,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained_mss", help="folder of a separator (default: %(default)s)")
    parser.add_argument("--train", nargs="+", required=True, help="manifests with songs of the split train")
    parser.add_argument("--validate", nargs="+", required=True, help="manifests with songs of the split validation")
    parser.add_argument("--work_dir", type=Path, required=True, help="for crops: 0.6 MB each")
    parser.add_argument("--num_crops", type=int, default=320, help="to learn from (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=600, help="of a refiner (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of refiners (default: 0 1 2)")
    options = parser.parse_args(arguments)
    if options.num_crops < 8:
        parser.error(f"an eighth of the crops is kept apart: --num_crops must be at least 8, got {options.num_crops}")
    try:
        result = run(options)
    except (ValueError, OSError) as error:
        print(f"token_worth: {error}", file=sys.stderr)
        return 1
    print(f"{'usdr above masked':<36}" + "".join(f"{name:>20}" for name in result["settings"]["masked"]["gains"]))
    for name, score in result["settings"].items():
        print(f"{name:<36}" + "".join(f"{gain:>+20.3f}" for gain in score["gains"].values()))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
