"""How a code is chosen: settings of a call, noise that is the same in every batch and on every device, the choice."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

# Fields of a GenerationConfig that `generate` follows, and with them those that say where it is from.
FOLLOWED = ("do_sample", "temperature", "top_k", "top_p", "num_return_sequences")
NAMED = (*FOLLOWED, "transformers_version", "_from_model_config")
# Values that ask for nothing; those of other fields are False, 0 and what is empty.
NEUTRAL = {
    "use_cache": True,
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "guidance_scale"), 1.0),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
}

MASK_32 = 0xFFFFFFFF


def is_neutral(name: str, value) -> bool:
    """Whether a field of a GenerationConfig with this value asks for nothing."""
    return value is None or value == NEUTRAL.get(name) or (not value and name != "use_cache")


def sampling_settings(
    saved: GenerationConfig, given: GenerationConfig | None, chosen: dict, others: dict
) -> GenerationConfig:
    """The settings of a call of `generate`: its arguments over those of the configuration.

    Args:
        saved: the model's own configuration.
        given: the configuration of the call, if it has one.
        chosen: the arguments for fields that are followed; others: those for fields that are not.

    Raises:
        ValueError: see `generate`.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise ValueError(f"`generation_config` must be a GenerationConfig, got {type(given).__name__}.")
    configurations = [saved] if given is None else [saved, given]
    others = {name: value for one in configurations for name, value in one.to_diff_dict().items()} | others
    refused = [name for name, value in others.items() if name not in NAMED and not is_neutral(name, value)]
    if refused:
        raise ValueError(
            f"`generate` of a separator follows {list(FOLLOWED)}, got {refused}: leave them out. What changes the "
            "scores of codes can be given as a `logits_processor`."
        )
    asked = {name: getattr(given, name, None) for name in FOLLOWED}
    asked |= {name: value for name, value in chosen.items() if value is not None}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked.get("num_return_sequences", 1) < 1:
        raise ValueError(f"`num_return_sequences` must be at least 1, got {asked['num_return_sequences']}.")
    values = {name: asked.get(name, getattr(saved, name)) for name in FOLLOWED}
    if values["do_sample"]:
        return GenerationConfig(**values)
    idle = [name for name, value in asked.items() if not is_neutral(name, value)]
    if idle:
        raise ValueError(f"{idle} have an effect on sampling only: pass do_sample=True as well.")
    return GenerationConfig(do_sample=False)  # what is saved for sampling waits


def hash_words(*words: int | torch.Tensor) -> int | torch.Tensor:
    """Words of 32 bits, in this order, to one; ints, or int64 tensors that broadcast.

    Each word goes through the two-round mixer of hash-prospector with the least known bias (16 21f0aaad 15 735a2d97
    15). Both factors are below 2^31: no product leaves int64, so every device computes the same.
    """
    value = 0
    for word in words:
        value = ((value + 0x9E3779B9) & MASK_32) ^ word  # a new tensor; what follows need not make more of them
        value ^= value >> 16
        value *= 0x21F0AAAD
        value &= MASK_32
        value ^= value >> 15
        value *= 0x735A2D97
        value &= MASK_32
        value ^= value >> 15
    return value


class CounterNoise:
    """Noise that is a function of a row's seed, the step and the index alone, the same in every batch and device.

    A random generator gives a row what the rows before it left; one generator per row is a loop on the host.
    """

    def __init__(self, seeds: Sequence[int], num_steps: int, num_values: int, device: torch.device):
        # Two keys `(2, steps, B, 1)`: one of 32 bits would be the same for two of some 2^16 pairs of row and step.
        self.keys = torch.empty(2, num_steps, len(seeds), 1, dtype=torch.long, device=device)
        self.indices = hash_words(torch.arange(num_values, device=device))
        self.reseed(seeds)

    def reseed(self, seeds: Sequence[int]) -> None:
        """Start again with as many other seeds."""
        device = self.keys.device
        words = torch.tensor([(seed & MASK_32, (seed >> 32) & MASK_32) for seed in seeds], device=device)
        steps = torch.arange(self.keys.shape[1], device=device)[:, None, None]
        for domain in (0, 1):
            self.keys[domain] = hash_words(domain, words[:, :1], words[:, 1:], steps)

    def uniform(self, step: torch.Tensor) -> torch.Tensor:
        """`(B, num_values)` float32 in (0, 1], finest near 0; `step` `(1,)` int64, on the device."""
        first, second = self.keys.index_select(1, step).squeeze(1)
        bits = hash_words((self.indices ^ first).add_(second).bitwise_and_(MASK_32))
        return bits.float().add_(0.5).mul_(2.0**-32)

    def gumbel(self, step: torch.Tensor) -> torch.Tensor:
        """`(B, num_values)` float32: arg max (log p + noise) is a sample of p. A uniform 1 gives minus infinity."""
        return self.uniform(step).neg_().log1p_().neg_().log_().neg_()


class CodeSampler:
    """Chooses codes from logits: the arg max, or a sample after temperature, top-k and top-p (transformers' warpers).

    Samples use the Gumbel trick, as `torch.multinomial` makes the host wait for the device. Without noise, it is the
    arg max.
    """

    def __init__(self, generation_config: GenerationConfig, noise: CounterNoise | None):
        self.noise, self.warpers = noise, []
        if generation_config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(generation_config.temperature))
        if generation_config.top_k:
            self.warpers.append(TopKLogitsWarper(generation_config.top_k))
        if generation_config.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(generation_config.top_p))

    def __call__(self, logits: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Logits of one step, `(B, ..., V)` -> `(B, ...)` int64; `step` `(1,)`, on the device."""
        if self.noise is None:
            return logits.argmax(dim=-1)
        scores = logits.float().flatten(0, -2)
        for warper in self.warpers:
            scores = warper(None, scores)
        return (scores.view(logits.shape) + self.noise.gumbel(step).view(logits.shape)).argmax(dim=-1)
