"""What a user may ask of a separation, checked before any work is done."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

CLIP_MODES = ("none", "rescale", "clamp")
TOKEN_OPTIONS = (  # how tokens are sampled and used: `masked` output has none
    "num_candidates",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_codebooks",
    "expected",
)


@dataclass(frozen=True)
class SeparationOptions:
    """Options of a call, as `AudioSourceSeparationPipeline.__call__` describes them. None: the model's or the
    processor's own."""

    stems: list[str] | None = None
    two_stems: str | None = None
    output: str | None = None
    window_s: float | None = None
    overlap: float | None = None
    batch_size: int | None = None
    num_candidates: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    num_codebooks: int | None = None
    expected: bool | None = None
    clip_mode: str = "none"
    progress_callback: Callable[[int, int], None] | None = None

    def check(self, model, processor) -> None:
        """Raise ValueError for anything that this model cannot do, whatever the song, or that contradicts itself."""
        config = model.config
        output = self.output or config.outputs[0]
        names = list(config.stems)
        if output not in config.outputs:
            raise ValueError(f"`output` must be among {config.outputs}, what this checkpoint is for, got {output!r}.")
        _require(self.stems is None or (self.stems and set(self.stems) <= set(names)), "stems", names, self.stems)
        _require(self.two_stems is None or self.two_stems in names, "two_stems", names, self.two_stems)
        _require(self.clip_mode in CLIP_MODES, "clip_mode", CLIP_MODES, self.clip_mode)
        for name in ("batch_size", "num_candidates", "num_codebooks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.num_codebooks is not None and self.num_codebooks > config.num_codebooks:
            raise ValueError(
                f"`num_codebooks` must be at most {config.num_codebooks}, the model's, got {self.num_codebooks}."
            )
        if self.stems is not None and len(set(self.stems)) < len(self.stems):
            raise ValueError(f"`stems` must name each stem once, got {self.stems}.")
        if self.stems is not None and self.two_stems is not None:
            raise ValueError(f"`two_stems` gives {self.labels(config)}: leave `stems` out, got {self.stems}.")
        if output == "generated" and (self.expected or (self.num_candidates or 1) > 1):
            raise ValueError(
                "`expected` and several candidates are averaged by the filter, for output='filtered'; got "
                f"output='generated', expected={self.expected}, num_candidates={self.num_candidates}."
            )
        if output == "masked" and (given := [name for name in TOKEN_OPTIONS if getattr(self, name) is not None]):
            raise ValueError(
                f"output='masked' samples no tokens, got {given}: leave them out, or choose another output."
            )
        if self.expected and self.num_codebooks is not None:
            raise ValueError(f"`expected` averages all codebooks: leave num_codebooks={self.num_codebooks} out.")
        if (self.num_candidates or 1) > 1 and self.do_sample is False:
            raise ValueError(
                f"num_candidates={self.num_candidates} needs samples that differ: leave `do_sample` out or set it True."
            )
        self._check_sampling(model.generation_config)
        processor.window_layout(1, processor.sampling_rate, self.window_s, self.overlap)

    def _check_sampling(self, generation_config) -> None:
        given = [name for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        do_sample = generation_config.do_sample if self.do_sample is None else self.do_sample
        if given and not (do_sample or (self.num_candidates or 1) > 1):
            raise ValueError(f"{given} have an effect on sampling only: pass do_sample=True as well.")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"`top_k` must be at least 0, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")

    def as_saved_with(self, config, generation_config) -> "SeparationOptions":
        """Complete: the model's own output and number of candidates, where none was asked for.

        Only the filter averages candidates, and only sampled ones differ: all else has one.
        """
        output, num_candidates = self.output or config.outputs[0], self.num_candidates
        if num_candidates is None:
            several = output == "filtered" and self.do_sample is not False and generation_config.do_sample
            num_candidates = config.num_candidates if several else 1
        return replace(self, output=output, num_candidates=num_candidates)

    @property
    def uses_averages(self) -> bool:
        """Whether the filter goes by averages of codebook vectors: unless it is told otherwise, with all codebooks."""
        return self.output == "filtered" and self.num_codebooks is None if self.expected is None else self.expected

    def labels(self, config) -> list[str]:
        """Names of the stems that come out, in order."""
        if self.two_stems is not None:
            return [self.two_stems, f"no_{self.two_stems}"]
        return list(self.stems or config.stems)

    def generated_stems(self, config) -> list[str]:
        """Names of the stems of which something must be known, in the model's order or in that asked for.

        `generated` with `two_stems` needs all, since the others are summed up. `filtered` takes every track up to the
        last one wanted: they are generated on the way anyway, and make the filter better.
        """
        names = list(config.stems)
        if self.output == "masked":
            return names
        if self.output == "generated":
            return names if self.two_stems else self.labels(config)
        if config.tracks_per_position > 1:
            return names
        wanted = [self.two_stems] if self.two_stems else self.labels(config)
        return names[: 1 + max(map(names.index, wanted))]


def _require(holds, name: str, allowed, received):
    if not holds:
        raise ValueError(f"`{name}` must be among {list(allowed)}, got {received!r}.")
