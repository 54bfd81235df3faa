"""Random changes of crops. Their order, the same for every crop:

1. each stem: gain and polarity, equaliser and reverberation, the level it has among the others, silence;
2. the sum: compression and clipping, as one gain for all stems;
3. what is learned from is fixed by now (the tokeniser reads stems after this), and so is the level (`set_level`);
4. the mixture alone, as a lossy codec leaves it.

The first two are `StemAugmentation.apply`, the last is `StemAugmentation.transmit`. Everything works on batches
`(B, S, T)` on any device.
"""

import dataclasses
import math
from dataclasses import dataclass, field

import torch

from . import effects
from .dataset import is_silent
from .manifest import STEMS, require

# Levels of mixtures. A separator hears a song at an RMS of 0.1 (`input_rms` of the processor), and each of its windows
# as loud as the song has it there: an intro or a fade-out may be 30 dB below the song. The floor is such a window's.
RMS_RANGE = (0.003, 0.3)


@dataclass
class AugmentationDraw:
    """How each crop of a batch is changed; on the CPU. None: no crop is.

    Args:
        gain: signed factors `(B, S, 1)`.
        gains_db: of the equaliser's bands, in decibels, `(B, S, 7)`; 0 where there is none.
        level_db: of each stem among the others, in decibels, `(B, S)`.
        silenced: stems that are to fall silent, `(B, S)` bool.
        reverb: `(B, S, 4)`, see `effects.reverberate`; the first is 0 where there is none.
        bus: `(B, 4)`, see `effects.bus_gain`; ratio 1 and drive 0 where there is none.
        lossy: `(B, 2)`, see `effects.make_lossy`; 0 where there is none.
    """

    gain: torch.Tensor
    gains_db: torch.Tensor
    level_db: torch.Tensor | None = None
    silenced: torch.Tensor | None = None
    reverb: torch.Tensor | None = None
    bus: torch.Tensor | None = None
    lossy: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> "AugmentationDraw":
        """That of crops `start` to `stop`: a process's part of a batch."""
        return AugmentationDraw(*(None if part is None else part[start:stop] for part in self._parts()))

    @staticmethod
    def join(draws: "list[AugmentationDraw]") -> "AugmentationDraw":
        """Several of one augmentation, one after the other, where every crop has a generator of its own."""
        columns = zip(*(draw._parts() for draw in draws))
        return AugmentationDraw(*(None if parts[0] is None else torch.cat(parts) for parts in columns))

    def _parts(self) -> list[torch.Tensor | None]:
        return [getattr(self, part.name) for part in dataclasses.fields(self)]


@dataclass
class AugmentationConfig:
    """How much crops are changed.

    It is off with `gain_range=(1.0, 1.0), polarity_probability=0.0, eq_probability=0.0`; all below `eq_probability` is
    off if not asked for. Of these, all numbers are drawn as soon as one is on, so that switching another one off leaves
    the rest as it was.

    Args:
        gain_range: factors, uniform (the paper's 0.5 to 1.5).
        polarity_probability: share of stems that are inverted (the paper's 10 %).
        eq_gain_db: largest boost or cut of a band in decibels, per stem, uniform. The paper says "track-dependent" and
            gives no numbers; drums and bass bear less before they stop sounding like themselves. 0: no EQ.
        eq_probability: share of stems that are equalised.
        stem_level_db: mean and standard deviation of each stem's level in decibels, normal; differences between stems
            are what counts. Crops of stems from different songs are mixed so, in place of `gain_range`, as far as their
            stems are audible.
        silence_probability: share of stems that fall silent, unless nothing audible were left of their crop.
        reverb_probability: share of stems that get a reverberation, which belongs to the stem then.
        reverb_decay_s: time in seconds in which it falls by 60 dB, log-uniform.
        reverb_wet_db: its level relative to the direct sound, in decibels, uniform.
        bus_probability: share of crops whose sum is compressed and softly clipped, see `effects.bus_gain`.
        lossy_probability: share of crops whose mixture, not whose stems, has been through a lossy codec, see
            `effects.make_lossy`.

    Raises:
        ValueError: impossible values.
    """

    gain_range: tuple[float, float] = (0.5, 1.5)
    polarity_probability: float = 0.1
    eq_gain_db: dict[str, float] = field(
        default_factory=lambda: {"vocals": 6.0, "drums": 4.0, "bass": 3.0, "other": 6.0}
    )
    eq_probability: float = 0.5
    stem_level_db: dict[str, tuple[float, float]] | None = None
    silence_probability: float = 0.0
    reverb_probability: float = 0.0
    reverb_decay_s: tuple[float, float] = (0.2, 2.5)
    reverb_wet_db: tuple[float, float] = (-24.0, -8.0)
    bus_probability: float = 0.0
    lossy_probability: float = 0.0

    def __post_init__(self):
        for name in ("silence_probability", "reverb_probability", "bus_probability", "lossy_probability"):
            require(0 <= getattr(self, name) <= 1, name, "in 0-1", getattr(self, name))
        (shortest, longest), (low, high) = self.reverb_decay_s, self.reverb_wet_db
        require(0 < shortest <= longest, "reverb_decay_s", "0 < low <= high, in seconds", self.reverb_decay_s)
        require(low <= high, "reverb_wet_db", "low <= high, in decibels", self.reverb_wet_db)


@dataclass
class StemAugmentation(AugmentationConfig):
    """Random changes of stems, and of what they add up to.

    Drawing is apart from applying: what is drawn, always on the CPU, depends neither on the device nor on how processes
    divide a batch.

    Args:
        stems: names of the axis S.
        sampling_rate: in hertz (Hz).

    Raises:
        ValueError: impossible values, or a stem without a level where there are levels.
    """

    stems: tuple[str, ...] | list[str] = STEMS
    sampling_rate: int = 48000

    def __post_init__(self):
        super().__post_init__()
        levels = self.stem_level_db
        if levels is not None and (set(self.stems) - set(levels) or any(std < 0 for _, std in levels.values())):
            raise ValueError(
                f"`stem_level_db` must give [mean, std >= 0] for each of {list(self.stems)}, got {levels}: add what is "
                "missing, or set it to null."
            )

    def __call__(
        self, stems: torch.Tensor, generator: torch.Generator | None = None, remixed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(B, S, T)` on any device -> the same shape. `generator` is on the CPU."""
        return self.apply(stems, self.draw(len(stems), generator), remixed)

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> AugmentationDraw:
        """Choose how a batch is changed. `generator` is on the CPU."""
        num_stems = len(self.stems)

        def uniform(*shape):
            return torch.rand(*shape, generator=generator)

        low, high = self.gain_range
        gain = low + (high - low) * uniform(batch_size, num_stems, 1)
        sign = torch.where(uniform(batch_size, num_stems, 1) < self.polarity_probability, -1.0, 1.0)
        limit = torch.tensor([self.eq_gain_db.get(stem, 6.0) for stem in self.stems])
        gains_db = (2 * uniform(batch_size, num_stems, len(effects.EQ_FREQUENCIES)) - 1) * limit[:, None]
        equalised = uniform(batch_size, num_stems, 1) < self.eq_probability
        draw = AugmentationDraw(gain * sign, gains_db * equalised)
        probabilities = (
            self.silence_probability,
            self.reverb_probability,
            self.bus_probability,
            self.lossy_probability,
        )
        if self.stem_level_db is not None or any(probabilities):
            self._draw_more(draw, generator)
        return draw

    def _draw_more(self, draw: AugmentationDraw, generator: torch.Generator | None) -> None:
        """What goes beyond the paper: every number, whatever is on."""
        shape = draw.gain.shape[:2]
        normal = torch.randn(*shape, generator=generator)
        stems = torch.rand(*shape, 6, generator=generator)
        crops = torch.rand(shape[0], 8, generator=generator)
        if self.stem_level_db is not None:
            mean, std = torch.tensor([self.stem_level_db[stem] for stem in self.stems]).unbind(dim=1)
            draw.level_db = mean + std * normal
        if self.silence_probability:
            draw.silenced = stems[..., 0] < self.silence_probability
        if self.reverb_probability:
            reverberated = stems[..., 1] < self.reverb_probability
            wet = 10 ** (between(self.reverb_wet_db, stems[..., 2]) / 20)
            decay = between([math.log(value) for value in self.reverb_decay_s], stems[..., 3]).exp()
            predelay = between(effects.PREDELAY_RANGE, stems[..., 4])
            draw.reverb = torch.stack([wet * reverberated, decay, predelay, stems[..., 5]], dim=-1)
        if self.bus_probability:
            on = crops[:, 0] < self.bus_probability
            ratio = torch.where(on, between(effects.RATIO_RANGE, crops[:, 1]), 1.0)
            threshold = between(effects.THRESHOLD_RANGE, crops[:, 2])
            release = between(effects.RELEASE_RANGE, crops[:, 3])
            drive = between(effects.DRIVE_RANGE, crops[:, 4]) * on
            draw.bus = torch.stack([ratio, threshold, release, drive], dim=-1)
        if self.lossy_probability:
            on = crops[:, 5] < self.lossy_probability
            low_pass = between(effects.LOW_PASS_RANGE, crops[:, 6])
            step = between([math.log(value) for value in effects.STEP_RANGE], crops[:, 7]).exp()
            draw.lossy = torch.stack([low_pass, step], dim=-1) * on[:, None]

    def apply(
        self,
        stems: torch.Tensor,
        draw: AugmentationDraw,
        remixed: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Change `(B, S, T)`, on any device, as drawn.

        Args:
            remixed: `(B,)` bool, crops of stems from different songs, whose levels are drawn; none if not given.
            known: `(B, S)` bool, see `StemDataset.labels`; all are if not given.

        Raises:
            ValueError: drawn for another batch size or number of stems.
        """
        if draw.gain.shape[:2] != stems.shape[:2]:
            raise ValueError(
                f"Drawn for (batch, stems) = {tuple(draw.gain.shape[:2])}, got stems of {tuple(stems.shape[:2])}: "
                "draw for their batch size, or take its part with `rows`."
            )
        changed = stems * draw.gain.to(stems.device)
        self._filter(changed, draw)
        if draw.level_db is not None or draw.silenced is not None:
            audible = ~is_silent(stems)
            if draw.level_db is not None and remixed is not None:
                chosen = audible & remixed.to(stems.device)[:, None]
                level_db = draw.level_db if known is None else levels_of_sums(draw.level_db, known.cpu())
                changed *= factors_to_levels(changed, level_db.to(stems.device), chosen)[..., None]
            if draw.silenced is not None:
                changed *= stays(audible, draw.silenced.to(stems.device))[..., None]
        if draw.bus is not None:
            rows = ((draw.bus[:, 0] > 1) | (draw.bus[:, 3] > 0)).nonzero().flatten()
            if len(rows):
                bus, rows = draw.bus[rows].to(stems.device), rows.to(stems.device)
                changed[rows] *= effects.bus_gain(changed[rows].sum(dim=1), bus, self.sampling_rate)[:, None]
        return changed

    def _filter(self, stems: torch.Tensor, draw: AugmentationDraw) -> None:
        """Equaliser and reverberation, in place."""
        # Stems without either are spared the FFT. They are found on the CPU: no device is waited for.
        equalised = draw.gains_db.any(dim=-1)
        reverberated = torch.zeros_like(equalised) if draw.reverb is None else draw.reverb[..., 0] > 0
        rows = (equalised & ~reverberated).nonzero(as_tuple=True)
        if len(rows[0]):
            crop, stem = (axis.to(stems.device) for axis in rows)
            gains_db = draw.gains_db[rows].to(stems.device)
            stems[crop, stem] = effects.equalise(stems[crop, stem], gains_db, self.sampling_rate)
        rows = reverberated.nonzero(as_tuple=True)
        if len(rows[0]):
            crop, stem = (axis.to(stems.device) for axis in rows)
            room, gains_db = draw.reverb[rows].to(stems.device), draw.gains_db[rows].to(stems.device)
            stems[crop, stem] = effects.reverberate(stems[crop, stem], room, gains_db, self.sampling_rate)

    def transmit(self, mixture: torch.Tensor, draw: AugmentationDraw) -> torch.Tensor:
        """Mixtures `(B, T)` as drawn lossy codecs leave them: no longer exactly what their stems add up to."""
        rows = [] if draw.lossy is None else draw.lossy[:, 0].nonzero().flatten()
        if not len(rows):
            return mixture
        lossy, rows, changed = draw.lossy[rows].to(mixture.device), rows.to(mixture.device), mixture.clone()
        changed[rows] = effects.make_lossy(mixture[rows], lossy, self.sampling_rate)
        return changed


def between(bounds: tuple[float, float] | list[float], share: torch.Tensor) -> torch.Tensor:
    """Shares of 0-1 -> values between two bounds."""
    low, high = bounds
    return low + (high - low) * share


def rms(waveforms: torch.Tensor) -> torch.Tensor:
    """`(..., T)` -> `(...)`."""
    return torch.linalg.vector_norm(waveforms, dim=-1) / math.sqrt(waveforms.shape[-1])


def levels_of_sums(level_db: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Levels `(B, S)` in decibels, those of stems that are known as a sum replaced by what they have together."""
    together = 10 * (10 ** (level_db / 10) * ~known).sum(dim=1, keepdim=True).clamp(min=1e-9).log10()
    return torch.where(known, level_db, together)


def factors_to_levels(stems: torch.Tensor, level_db: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """What brings the `chosen` stems (`(B, S)` bool) of `(B, S, T)` to levels `(B, S)` in decibels of full scale."""
    return torch.where(chosen, 10 ** (level_db / 20) / rms(stems).clamp(min=1e-8), 1.0)


def stays(audible: torch.Tensor, silenced: torch.Tensor) -> torch.Tensor:
    """Which stems `(B, S)` are kept: those that are not to fall silent, or all where nothing audible were left."""
    return ~silenced | ~(audible & ~silenced).any(dim=1, keepdim=True)


def random_level(
    stems: torch.Tensor, generator: torch.Generator | None = None, rms_range: tuple[float, float] = RMS_RANGE
) -> torch.Tensor:
    """Scale each crop `(B, S, T)`, all stems alike, so that its mixture's RMS is log-uniform in `rms_range`.

    The input-gain rule of training (docs/method.md), see `RMS_RANGE`. `generator` is on the CPU.
    """
    return set_level(stems, draw_levels(len(stems), generator, rms_range))


def draw_levels(
    batch_size: int, generator: torch.Generator | None = None, rms_range: tuple[float, float] = RMS_RANGE
) -> torch.Tensor:
    """RMS values, log-uniform in `rms_range`: `(B,)` on the CPU, where `generator` is too."""
    low, high = (math.log(value) for value in rms_range)
    return (low + (high - low) * torch.rand(batch_size, generator=generator)).exp()


def set_level(stems: torch.Tensor, target_rms: torch.Tensor) -> torch.Tensor:
    """Scale each crop `(B, S, T)`, all stems alike, to its mixture's `target_rms` `(B,)`; silent ones stay."""
    rms = stems.sum(dim=1).square().mean(dim=-1).sqrt()  # (B,)
    factor = torch.where(rms > 1e-8, target_rms.to(rms) / rms.clamp(min=1e-8), torch.ones_like(rms))
    return stems * factor[:, None, None]
