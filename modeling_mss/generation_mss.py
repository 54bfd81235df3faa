"""The token grammar and the decode loop.

Every window has the same length, and the length of a track is known, so there is nothing to pad, to schedule or to
stop early: all windows of a song decode in lockstep, the key-value cache is static, codes and positions stay on the
device, and the host never waits for a result inside the loop.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, GenerationMixin, StaticCache
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class TokenGrammar:
    """Which symbol stands where. A block is S and the 2 F codes of a track; its outputs are the codes and E.

    Offsets count from a block's S: the position at offset j predicts code j, and the one at offset 2 F predicts E.
    """

    num_prefix: int  # P, frames of the mixture
    num_frames: int  # F, code frames per path
    num_blocks: int  # tracks, or 1 when they are generated in parallel

    @property
    def codes_per_block(self) -> int:
        return 2 * self.num_frames

    @property
    def block_length(self) -> int:
        """Positions of a block: its S and its codes; as many outputs: its codes and E."""
        return self.codes_per_block + 1

    @property
    def num_steps(self) -> int:
        """Scored positions: 404 for four tracks of 4 s."""
        return self.num_blocks * self.block_length

    @property
    def length(self) -> int:
        """Positions of the whole sequence, `<mix>` and the prefix included."""
        return 1 + self.num_prefix + self.num_steps

    def block_start(self, block: int) -> int:
        """Position of the S of a block."""
        return 1 + self.num_prefix + block * self.block_length

    @staticmethod
    def path(offset: int) -> int:
        """Path of code `offset` of a track: acoustic (0) and semantic (1) alternate."""
        return offset % 2


class CodeSampler:
    """Chooses codes from logits: the arg max, or a draw after temperature, top-k and top-p (transformers' warpers).

    Draws use the Gumbel trick, as `torch.multinomial` makes the host wait for the device.
    """

    def __init__(self, generation_config: GenerationConfig, device: torch.device, seed: int | None = None):
        self.do_sample = bool(generation_config.do_sample)
        self.warpers, self.generator = [], None
        if not self.do_sample:
            return
        if generation_config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(generation_config.temperature))
        if generation_config.top_k:
            self.warpers.append(TopKLogitsWarper(generation_config.top_k))
        if generation_config.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(generation_config.top_p))
        if seed is not None:
            self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """`(..., V)` -> `(...,)` int64."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        scores = logits.float().flatten(0, -2)
        for warper in self.warpers:
            scores = warper(None, scores)
        noise = torch.empty_like(scores).exponential_(generator=self.generator)
        return (scores.softmax(dim=-1) / noise).argmax(dim=-1).view(logits.shape[:-1])


class MssGenerationMixin(GenerationMixin):
    """`generate` of a separator, in four steps: prefill, one position, one block, all blocks."""

    def prefill(self, prefix: torch.Tensor, cache: StaticCache) -> None:
        """Read `<mix>` and the mixture `(B, P, H)` into the cache."""
        embeds = self.prefix_embeds(prefix)
        position_ids = torch.arange(embeds.shape[1], device=prefix.device)[None]
        self.decoder(inputs_embeds=embeds, position_ids=position_ids, past_key_values=cache, use_cache=True)

    def decode_one_token(
        self,
        codes: torch.Tensor | None,
        cache: StaticCache,
        position: torch.Tensor,
        position_embeds: torch.Tensor,
        path: int,
        sampler: CodeSampler,
    ) -> torch.Tensor:
        """One step, a pure function of its tensors: the codes of one position -> those of the next.

        Args:
            codes: `(B, lanes * Q)`, of the other path; None stands for S.
            position: `(1, 1)`, on the device.
            position_embeds: `(B, H)`, see there.
            path: path of the codes to choose. E is masked: the acoustic heads' last class is not read.
        """
        inputs = self.start_embeds(len(position_embeds)) if codes is None else self.embed_codes(codes, 1 - path)
        hidden_states = self.decoder(
            inputs_embeds=(inputs + position_embeds)[:, None],
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return sampler(self.code_logits(hidden_states, path)[..., : self.config.codebook_size]).flatten(1)

    def decode_one_block(
        self,
        codes: torch.Tensor,
        cache: StaticCache,
        position: torch.Tensor,
        position_embeds: torch.Tensor,
        sampler: CodeSampler,
        on_step: Callable[[], None],
        is_last: bool,
    ) -> None:
        """Write the codes of a track into `codes` `(B, 2 F, lanes * Q)`; `position` is that of its S.

        E is forced after the last code: that code is read into the cache, and whatever follows it is dropped. After
        the last block nothing follows, and the step is saved.
        """
        num_codes, previous = codes.shape[1], None
        for offset in range(num_codes + 1):
            if offset < num_codes or not is_last:
                step_embeds, path = position_embeds[:, offset], TokenGrammar.path(offset)
                previous = self.decode_one_token(previous, cache, position + offset, step_embeds, path, sampler)
            if offset < num_codes:
                codes[:, offset] = previous
            on_step()

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        stems: list[str] | None = None,
        generation_config: GenerationConfig | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        step_callback: Callable[[int, int], None] | None = None,
    ) -> torch.LongTensor:
        """Generate the codes of the stems of a batch of windows.

        Args:
            input_features, input_values: the mixture, see `encode_mixture`.
            stems: names from `config.stems`; all if not given. Tracks are generated in the configured order up to the
                last one asked for (all of them in parallel generation), so vocals alone take a quarter of the steps.
            generation_config: defaults of the four arguments that follow; the one saved with the model if not given.
            do_sample, temperature, top_k, top_p: greedy decoding, or sampling and its limits. Arguments win.
            seed: seed of the draws; the global generator of the device if not given.
            step_callback: called with (steps done, steps in all) after every position; an exception raised in it
                stops the generation.

        Returns:
            `(B, len(stems), 2 F, Q)` int64, in the order asked for.

        Raises:
            ValueError: unknown stems, limits of sampling without sampling, or an input the model does not read.
        """
        names = list(self.config.stems)
        stems = names if stems is None else list(stems)
        if not stems or not set(stems) <= set(names):
            raise ValueError(f"`stems` must be some of {names}, got {stems}.")
        settings = copy.deepcopy(generation_config or self.generation_config)
        chosen = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings.update(**{name: value for name, value in chosen.items() if value is not None})
        limits = [name for name, value in chosen.items() if value is not None and name != "do_sample"]
        if limits and not settings.do_sample:
            raise ValueError(f"{limits} have an effect on sampling only: pass do_sample=True as well.")
        sampler = CodeSampler(settings, self.device, seed)

        prefix = self.encode_mixture(input_features, input_values)
        num_tracks = 1 + max(names.index(stem) for stem in stems)
        num_blocks = num_tracks if self.config.num_lanes == 1 else 1
        grammar = TokenGrammar(prefix.shape[1], self.num_code_frames(prefix), num_blocks)
        width = self.config.num_lanes * self.config.num_codebooks
        codes = torch.empty(
            (len(prefix), num_blocks, grammar.codes_per_block, width), dtype=torch.long, device=prefix.device
        )
        position_embeds = self.position_embeds(prefix, num_blocks)
        cache = StaticCache(config=self.config.decoder_config, max_cache_len=grammar.length)
        steps_done = 0

        def on_step():
            nonlocal steps_done
            steps_done += 1
            if step_callback is not None:
                step_callback(steps_done, grammar.num_steps)

        self.prefill(prefix, cache)
        first = torch.full((1, 1), grammar.block_start(0), device=prefix.device)
        for block in range(num_blocks):
            self.decode_one_block(
                codes[:, block],
                cache,
                first + block * grammar.block_length,
                position_embeds[:, block],
                sampler,
                on_step,
                is_last=block == num_blocks - 1,
            )
        return self.to_stems(codes)[:, [names.index(stem) for stem in stems]]
