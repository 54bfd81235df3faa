"""The token grammar and the decode loop.

Every window has the same length, and the length of a track is known, so there is nothing to pad, to schedule or to
stop early: all windows of a song decode in lockstep, the key-value cache has its final size from the start, codes,
noise and latents stay on the device, and the host never waits for a result inside the loop.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from transformers import Cache, GenerationConfig, GenerationMixin, LlamaModel, LogitsProcessorList
from transformers.cache_utils import StaticLayer
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .noise_mss import MASK_32, CounterNoise, hash_words

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

# transformers 5.24 has a new name for the argument, and 5.40 will no longer know the old one.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def is_neutral(name: str, value) -> bool:
    """Whether a field of a GenerationConfig with this value asks for nothing."""
    return value is None or value == NEUTRAL.get(name) or (not value and name != "use_cache")


@dataclass
class MssGenerateOutput(ModelOutput):
    """Result of `generate` with `output_latents`.

    codes `(B, stems, 2 F, Q)` int64, what `generate` returns without it. acoustic_latents and semantic_latents
    `(B, stems, D, F)` float32: the vector that the model expects at each code, given the codes before it. Layer by
    layer the codebook's vectors are averaged with the model's probabilities (without temperature and the other limits
    of sampling, but after a `logits_processor`, and also where a prompt forces the code), and layers are summed. Where
    the model is certain, this is the quantizer's `decode` of the codes; uncertain layers shrink to their mean.

    B counts candidates, too: those of a window stand one after another.
    """

    codes: torch.LongTensor | None = None
    acoustic_latents: torch.FloatTensor | None = None
    semantic_latents: torch.FloatTensor | None = None


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

    Draws use the Gumbel trick, as `torch.multinomial` makes the host wait for the device. Without noise, no draws.
    """

    def __init__(self, generation_config: GenerationConfig, noise: CounterNoise | None):
        self.noise, self.warpers = noise, []
        if generation_config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(generation_config.temperature))
        if generation_config.top_k:
            self.warpers.append(TopKLogitsWarper(generation_config.top_k))
        if generation_config.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(generation_config.top_p))

    def __call__(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Logits of one step, `(B, ..., V)` -> `(B, ...)` int64."""
        if self.noise is None:
            return logits.argmax(dim=-1)
        scores = logits.float().flatten(0, -2)
        for warper in self.warpers:
            scores = warper(None, scores)
        return (scores.view(logits.shape) + self.noise.gumbel(step).view(logits.shape)).argmax(dim=-1)


class PreallocatedLayer(StaticLayer):
    """The cache of one layer. It has its final size from the start, but attention sees the filled part only.

    The host knows how much is filled: unlike transformers' static layer, which is made for compilation, this one needs
    no mask and no attention to positions that are still empty.

    Args:
        max_cache_len: positions.
        num_repeats: the first call, which reads the mixture, has B rows; what follows goes on from so many copies of
            each, `B * num_repeats` rows.
    """

    is_compileable = False

    def __init__(self, max_cache_len: int, num_repeats: int = 1):
        super().__init__(max_cache_len)
        self.num_repeats = num_repeats
        self.filled = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `(rows, heads, T, head size)` of both; views of all that is filled.

        What attention layers pass besides differs between versions of transformers and is for other kinds of caches.
        """
        first, states = not self.is_initialized, (key_states, value_states)
        if first and self.num_repeats > 1:
            states = tuple(values.repeat_interleave(self.num_repeats, dim=0) for values in states)
        if first:
            self.lazy_initialization(*states)
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        self.keys[:, :, start : self.filled], self.values[:, :, start : self.filled] = states
        if first:
            return key_states, value_states  # of the rows that were read
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled


@dataclass
class DecodeState:
    """What one call of `generate` reads and writes, all of it on the device. D is the size of the codec's latents, and
    B here counts candidates."""

    grammar: TokenGrammar
    logits_processor: LogitsProcessorList
    sampler: CodeSampler
    cache: Cache
    positions: torch.Tensor  # (1, length)
    position_embeds: torch.Tensor  # (B, blocks, 2 F + 1, H)
    prompt: torch.Tensor  # (B, blocks, 2 x prompt frames, lanes * Q) int64, negative where the model is free
    codebooks: list[torch.Tensor]  # by path, (Q, V, D) float32, if latents are asked for
    codes: torch.Tensor  # (B, blocks, 2 F, lanes * Q) int64, result
    latents: torch.Tensor | None  # (B, blocks, 2 F, lanes * D) float32, result, if asked for

    def choose(self, logits: torch.Tensor, block: int, offset: int) -> torch.Tensor:
        """Write the results of one position; `(B, lanes, Q, V)` -> its codes `(B, lanes * Q)`."""
        if self.logits_processor:
            chosen = self.codes[:, block, self.grammar.path(offset) : offset : 2]  # of this path and track
            rows = chosen.transpose(1, 2).flatten(0, 1)  # (B * lanes * Q, codes so far)
            logits = self.logits_processor(rows, logits.float().flatten(0, -2)).view(logits.shape)
        codes = self.sampler(logits, block * self.grammar.codes_per_block + offset).flatten(1)
        if offset < self.prompt.shape[2]:
            forced = self.prompt[:, block, offset]
            codes = torch.where(forced < 0, codes, forced)
        self.codes[:, block, offset] = codes
        if self.latents is not None:
            with torch.autocast(logits.device.type, enabled=False):
                probabilities = logits.float().softmax(dim=-1)
                codebooks = self.codebooks[self.grammar.path(offset)]
                latents = torch.einsum("blqv,qvd->bld", probabilities, codebooks)
            self.latents[:, block, offset] = latents.flatten(1)
        return codes


class MssGenerationMixin(GenerationMixin):
    """`generate` of a separator, in four steps: prefill, one position, one block, all blocks.

    It follows transformers' contract where a separation has what it is about: settings of sampling, candidates,
    processors of logits, streamers. The length of the result is known and nothing is searched, so the other settings of
    a GenerationConfig are refused.
    """

    @staticmethod
    def derive_seeds(seed: int, indices: Iterable[int]) -> list[int]:
        """One seed for each index (0 to 2^32 - 1), of (seed, index) alone.

        `generate` with an int seed uses `derive_seeds(seed, range(B))`. Give it `derive_seeds(seed, windows)` instead,
        and a song's draws do not depend on how its windows are batched.
        """
        words = seed & MASK_32, (seed >> 32) & MASK_32
        return [hash_words(2, *words, index) | hash_words(3, *words, index) << 32 for index in indices]

    def prefill(self, prefix: torch.Tensor, cache: Cache) -> None:
        """Read `<mix>` and the mixture `(B, P, H)` into the cache."""
        embeds = self.prefix_embeds(prefix)
        position_ids = torch.arange(embeds.shape[1], device=prefix.device)[None]
        self.decoder(inputs_embeds=embeds, position_ids=position_ids, use_cache=True, **{CACHE: cache})

    def decode_one_token(
        self,
        codes: torch.Tensor | None,
        cache: Cache,
        position: torch.Tensor,
        position_embeds: torch.Tensor,
        path: int,
    ) -> torch.Tensor:
        """One step: the codes of one position -> the logits of the next, `(B, lanes, Q, V)`.

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
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state[:, -1]
        return self.code_logits(hidden_states, path)[..., : self.config.codebook_size]

    def decode_one_block(
        self, state: DecodeState, block: int, on_step: Callable[[], None], streamer: BaseStreamer | None
    ) -> None:
        """Write the codes of a track, or of all tracks in parallel generation, into the state.

        E is forced after the last code: that code is read into the cache, and whatever follows it is dropped. After
        the last block nothing follows, and the step is saved.
        """
        grammar, codes = state.grammar, None
        for offset in range(grammar.block_length):
            is_code = offset < grammar.codes_per_block
            if is_code or block + 1 < grammar.num_blocks:
                position = grammar.block_start(block) + offset
                logits = self.decode_one_token(
                    codes,
                    state.cache,
                    state.positions[:, position : position + 1],
                    state.position_embeds[:, block, offset],
                    grammar.path(offset),
                )
            if is_code:
                codes = state.choose(logits, block, offset)
                if streamer is not None:
                    streamer.put(codes.cpu())
            on_step()

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        stems: list[str] | str | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        streamer: BaseStreamer | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_return_sequences: int | None = None,
        seed: int | Sequence[int] | None = None,
        prompt_codes: torch.Tensor | None = None,
        prompt_frames: int = 0,
        output_latents: bool = False,
        step_callback: Callable[[int, int], None] | None = None,
        **others,
    ) -> torch.LongTensor | MssGenerateOutput:
        """Generate the codes of the stems of a batch of windows.

        Args:
            input_features, input_values: the mixture, see `encode_mixture`.
            stems: names from `config.stems`; all if not given. Tracks are generated in the configured order up to the
                last one asked for (all of them in parallel generation), so vocals alone take a quarter of the steps.
            generation_config: of the five settings below; what it leaves open is as saved with the model.
            logits_processor: changes the scores of codes before one is chosen. It sees `(rows, V)`, a row for every
                candidate, (lane,) and codebook, and as ids `(rows, n)` the n codes that it has for this row so far: of
                the same track and path.
            streamer: gets the codes of every position as they are chosen, `(B * N, lanes * Q)` on the CPU, track after
                track, acoustic and semantic alternating; the device is waited for at each.
            do_sample, temperature, top_k, top_p: greedy decoding, or sampling and its limits. Arguments win.
            num_return_sequences: N candidates of every window; the mixture is read once for all of them.
            seed: of the draws. A sequence holds one for each window, whose noise depends on its own seed alone,
                whatever else is in the batch; an int stands for `derive_seeds(seed, range(B))`. Candidates of a window
                have seeds derived from its own: the first ones are the same however many there are. If not given,
                seeds are drawn from torch's global generator.
            prompt_codes: `(B, len(stems), 2 prompt_frames or more, Q)` int64, for the stems in the order asked for:
                codes that are known, as those of the window before where both overlap. Negative ones are not, and
                neither are those of tracks that are generated on the way to the ones asked for.
            prompt_frames: number of code frames from the start that take the prompt's codes; the rest goes on from
                there. They take as long as others.
            output_latents: also return what the model expects in place of what it chose, see `MssGenerateOutput`.
            step_callback: called with (steps done, steps in all) after every position; an exception raised in it
                stops the generation.
            others: further fields of GenerationConfig, which are refused.

        Returns:
            `(B * N, len(stems), 2 F, Q)` int64, stems in the order asked for, candidates of a window one after another;
            with `output_latents` an `MssGenerateOutput`.

        Raises:
            ValueError: unknown stems, settings that `generate` does not follow, limits of sampling or several
                candidates without sampling, seeds or a prompt that do not fit the batch, or an input the model does
                not read.
        """
        names = list(self.config.stems)
        stems = names if stems is None else [stems] if isinstance(stems, str) else list(stems)
        if not stems or not set(stems) <= set(names):
            raise ValueError(f"`stems` must be some of {names}, got {stems}.")
        chosen = {
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_return_sequences": num_return_sequences,
        }
        settings = self._settings(generation_config, chosen, others)
        num_candidates = settings.num_return_sequences or 1

        mixture = self.encode_mixture(input_features, input_values)
        prefix = mixture.prefix
        tracks = [names.index(stem) for stem in stems]
        num_blocks = 1 + max(tracks) if self.config.num_lanes == 1 else 1
        grammar = TokenGrammar(prefix.shape[1], self.num_code_frames(prefix), num_blocks)
        noise = self._noise(seed, num_candidates, grammar, prefix) if settings.do_sample else None
        num_rows = len(prefix) * num_candidates
        prompt = self._prompt(prompt_codes, prompt_frames, tracks, grammar, prefix)
        state = DecodeState(
            grammar=grammar,
            logits_processor=LogitsProcessorList(logits_processor or []),
            sampler=CodeSampler(settings, noise),
            cache=Cache([PreallocatedLayer(grammar.length, num_candidates) for _ in self.decoder.layers]),
            positions=torch.arange(grammar.length, device=prefix.device)[None],
            position_embeds=self.position_embeds(mixture, num_blocks).repeat_interleave(num_candidates, dim=0),
            prompt=prompt.repeat_interleave(num_candidates, dim=0),
            codebooks=[],
            codes=self._by_position(grammar, num_rows, self.config.num_codebooks, torch.long, prefix.device),
            latents=None,
        )
        if output_latents:
            quantizers = self.codec.acoustic_quantizer, self.codec.semantic_quantizer
            state.codebooks = [quantizer.codebooks.float() for quantizer in quantizers]
            size = self.config.codec_config.latent_size
            state.latents = self._by_position(grammar, num_rows, size, torch.float32, prefix.device)
        steps_done = 0

        def on_step():
            nonlocal steps_done
            steps_done += 1
            if step_callback is not None:
                step_callback(steps_done, grammar.num_steps)

        self.prefill(prefix, state.cache)
        for block in range(num_blocks):
            self.decode_one_block(state, block, on_step, streamer)
        if streamer is not None:
            streamer.end()
        codes = self.to_stems(state.codes)[:, tracks]
        if not output_latents:
            return codes
        latents = self.to_stems(state.latents)[:, tracks].transpose(2, 3)
        return MssGenerateOutput(codes, latents[..., 0::2], latents[..., 1::2])

    def _settings(self, given: GenerationConfig | None, chosen: dict, others: dict) -> GenerationConfig:
        """The settings of a call of `generate`: its arguments over those of the configuration.

        Args:
            given: the configuration of the call, if it has one.
            chosen: the arguments for fields that are followed; others: those for fields that are not.

        Raises:
            ValueError: see `generate`.
        """
        if given is not None and not isinstance(given, GenerationConfig):
            raise ValueError(f"`generation_config` must be a GenerationConfig, got {type(given).__name__}.")
        configurations = [self.generation_config] if given is None else [self.generation_config, given]
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
        values = {name: asked.get(name, getattr(self.generation_config, name)) for name in FOLLOWED}
        if values["do_sample"]:
            return GenerationConfig(**values)
        idle = [name for name, value in asked.items() if not is_neutral(name, value)]
        if idle:
            raise ValueError(f"{idle} have an effect on sampling only: pass do_sample=True as well.")
        return GenerationConfig(do_sample=False)  # what is saved for sampling waits

    def _noise(
        self, seed: int | Sequence[int] | None, num_candidates: int, grammar: TokenGrammar, prefix: torch.Tensor
    ) -> CounterNoise:
        """The noise of a batch of windows and their candidates; `seed` as in `generate`."""
        if seed is None:
            seed = torch.randint(2**63 - 1, (len(prefix),)).tolist()
        seeds = self.derive_seeds(int(seed), range(len(prefix))) if isinstance(seed, Integral) else list(seed)
        if len(seeds) != len(prefix):
            raise ValueError(f"`seed` must be an int or one for each of {len(prefix)} windows, got {len(seeds)}.")
        seeds = [candidate for window in seeds for candidate in self.derive_seeds(window, range(num_candidates))]
        num_values = self.config.num_lanes * self.config.num_codebooks * self.config.codebook_size
        return CounterNoise(seeds, grammar.num_blocks * grammar.codes_per_block, num_values, prefix.device)

    def _prompt(
        self,
        codes: torch.Tensor | None,
        num_frames: int,
        tracks: list[int],
        grammar: TokenGrammar,
        prefix: torch.Tensor,
    ) -> torch.Tensor:
        """The prompt by position, `(B, blocks, 2 num_frames, lanes * Q)`; `codes` and `num_frames` as in `generate`."""
        batch, length, depth = len(prefix), 2 * num_frames, self.config.num_codebooks
        if not 0 <= num_frames <= grammar.num_frames or (num_frames > 0) != (codes is not None):
            raise ValueError(
                f"`prompt_frames` must be 0 without `prompt_codes` and 1 to {grammar.num_frames} with them, got "
                f"{num_frames} {'without' if codes is None else 'with'} them."
            )
        shape = (batch, grammar.num_blocks * self.config.num_lanes, length, depth)
        prompt = torch.full(shape, -1, device=prefix.device)
        if codes is not None:
            if (*codes.shape[:2], *codes.shape[3:]) != (batch, len(tracks), depth) or codes.shape[2] < length:
                raise ValueError(
                    f"`prompt_codes` must have shape (batch, stems, 2 x prompt_frames or more, codebooks) = "
                    f"{(batch, len(tracks), length, depth)}, got {tuple(codes.shape)}."
                )
            prompt[:, tracks] = codes[:, :, :length]
        return self.to_blocks(prompt)

    def _by_position(
        self, grammar: TokenGrammar, num_rows: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Memory for results with `size` values a track and position, `(num_rows, blocks, 2 F, lanes * size)`."""
        shape = (num_rows, grammar.num_blocks, grammar.codes_per_block, self.config.num_lanes * size)
        return torch.empty(shape, dtype=dtype, device=device)
