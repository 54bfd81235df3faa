"""What is scored, and on which parts of a song: the protocol of docs/evaluation.md in code.

`score_song` asks every metric of a table (`metric_table.METRICS`) for its scores.
"""

import functools
import math
from dataclasses import replace

import torch

from .metric_inputs import MetricUnavailable, is_silent
from .metric_table import Metric, Sounds
from .roundtrip import CodecRoundTrip, mixture_gain
from .songs import EvaluationSong

SEGMENT_S = 10.0
AUDIBLE_RMS = 10 ** (-50 / 20)  # of the mono mix of a reference, full scale 1: what the listening models hear
CODEC = "_codec"  # ending of the scores of the paper's protocol


def score_names(metrics: dict[str, Metric], with_codec: bool) -> list[str]:
    """All scores that `score_song` gives for these metrics."""
    names = [score for metric in metrics.values() for score in metric.scores]
    coded = [score + CODEC for metric in metrics.values() if metric.segmented for score in metric.scores]
    return names + (coded if with_codec else [])


class SongCodec:
    """The codec round trip for one song, at the level that its mixture gives; references go once for all systems."""

    def __init__(self, roundtrip: CodecRoundTrip, song: EvaluationSong):
        self._roundtrip, self._song = roundtrip, song
        self.gain = mixture_gain(song.mixture)

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        """`(N, C, T)` -> `(N, 1, T)`."""
        return self._roundtrip(waveforms, self._song.sampling_rate, gain=self.gain)[:, None]

    @functools.cached_property
    def references(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._song.stems, self(self._song.references)))


def score_song(
    song: EvaluationSong,
    estimates: dict[str, torch.Tensor],
    metrics: dict[str, Metric],
    codec: SongCodec | None = None,
    generative: bool = False,
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """Score the estimates of one system.

    Args:
        estimates: stem -> `(C, T)`, or `(1, T)`, which counts for all channels. Stems may be missing.
        codec: for the scores in `*_codec`; without it there are none.
        generative: the estimates are a codec's output already: only references go through it.

    Returns:
        score -> stem -> value, None where it is not defined (silent reference, infinite); and metric -> why it could
        not run, the others go on.
    """
    plain = {}
    for stem, reference in zip(song.stems, song.references):
        if stem in estimates:
            plain[stem] = Sounds(estimates[stem].expand_as(reference), reference, song.mixture, song.sampling_rate)
    segments = {stem: audible_segments(sounds.reference, song.sampling_rate) for stem, sounds in plain.items()}
    forms = {"": lambda: plain}
    if codec is not None:
        forms[CODEC] = functools.cache(lambda: _through_codec(plain, codec, generative))
    scores, reasons = {}, {}
    for ending, sounds in forms.items():
        for name, metric in metrics.items():
            if ending and not metric.segmented:
                continue
            try:
                found = _score(metric, song, sounds(), segments)
            except MetricUnavailable as error:
                reasons[name + ending] = str(error)
            except Exception as error:  # whatever a library raises: one metric must not cost a song its others
                reasons[name + ending] = f"{type(error).__name__}: {error}"
            else:
                scores.update({score + ending: values for score, values in found.items()})
    return scores, reasons


def _score(
    metric: Metric, song: EvaluationSong, sounds: dict[str, Sounds], segments: dict[str, list[slice]]
) -> dict[str, dict[str, float | None]]:
    if metric.joint:
        return {metric.scores[0]: _score_jointly(metric, song, sounds)}
    scores = {score: {} for score in metric.scores}
    for stem, sound in sounds.items():
        if metric.stems is not None and stem not in metric.stems:
            continue
        pieces = [sound.cut(span) for span in segments[stem]] if metric.segmented else [sound]
        values = [[float(value) for value in metric.compute(piece)] for piece in pieces]
        for index, score in enumerate(metric.scores):
            scores[score][stem] = _mean([value[index] for value in values])
    return scores


def _mean(values: list[float]) -> float | None:
    """Over the segments in which a score is defined."""
    values = [value for value in values if not math.isnan(value)]
    return finite(sum(values) / len(values)) if values else None


def _score_jointly(metric: Metric, song: EvaluationSong, sounds: dict[str, Sounds]) -> dict[str, float | None]:
    """Stems that a system does not estimate take part as they truly are, so that all systems have the same windows.

    A stem that is silent but for the noise of its codec would get -600 dB: it is not defined, as for other ratios.
    """
    estimates = [
        sounds[stem].estimate if stem in sounds else reference for stem, reference in zip(song.stems, song.references)
    ]
    together = Sounds(torch.stack(estimates), song.references, song.mixture, song.sampling_rate)
    values = dict(zip(song.stems, metric.compute(together)))
    return {stem: None if is_silent(sound.reference) else finite(values[stem]) for stem, sound in sounds.items()}


def _through_codec(plain: dict[str, Sounds], codec: SongCodec, generative: bool) -> dict[str, Sounds]:
    estimates = {stem: sounds.estimate for stem, sounds in plain.items()}
    if not generative and estimates:
        estimates = dict(zip(estimates, codec(torch.stack(list(estimates.values())))))
    return {
        stem: replace(sounds, estimate=estimates[stem], reference=codec.references[stem])
        for stem, sounds in plain.items()
    }


def audible_segments(reference: torch.Tensor, sampling_rate: int) -> list[slice]:
    """Segments of 10 s in which the mono mix of a reference `(C, T)` is above -50 dBFS RMS.

    The last one is shifted back so that it ends with the song; a shorter song is one segment.
    """
    num_samples, length = reference.shape[-1], round(SEGMENT_S * sampling_rate)
    starts = list(range(0, max(num_samples - length, 0) + 1, length))
    if starts[-1] + length < num_samples:
        starts.append(num_samples - length)
    spans = [slice(start, min(start + length, num_samples)) for start in starts]
    return [span for span in spans if _rms(reference[:, span]) > AUDIBLE_RMS]


def _rms(waveform: torch.Tensor) -> float:
    """Of the mono mix of `(C, T)`."""
    return waveform.mean(dim=0).double().square().mean().sqrt().item()


def finite(value: float) -> float | None:
    """None for what JSON cannot hold: NaN, where a score is not defined, and the ratio of an estimate without error."""
    value = float(value)
    return value if math.isfinite(value) else None
