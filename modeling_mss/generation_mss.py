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
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .sampling_mss import MASK_32, CodeSampler, CounterNoise, hash_words, sampling_settings

# transformers 5.24 has a new name for the argument, and 5.40 will no longer know the old one.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


@dataclass
class MssGenerateOutput(ModelOutput):
    """Result of `generate` with `output_latents`.

    codes `(B, stems, 2 F, Q)` int64, what `generate` returns without it. acoustic_latents and semantic_latents
    `(B, stems, D, F)` float32: the vector that the model expects at each code, given the codes before it. Layer by
    layer the codebook's vectors are averaged with the model's probabilities (without temperature and the other limits
    of sampling, but after a `logits_processor`), and layers are summed. Where the model is certain, this is the
    quantizer's `decode` of the codes; uncertain layers shrink to their mean.

    B counts candidates, too: those of a window stand one after another.
    """

    codes: torch.LongTensor | None = None
    acoustic_latents: torch.FloatTensor | None = None
    semantic_latents: torch.FloatTensor | None = None


@dataclass(frozen=True)
class TokenGrammar:
    """Which symbol stands where. A segment is S and the 2 F codes of a track; its outputs are the codes and E.

    Offsets count from a segment's S: the position at offset j predicts code j, and the one at offset 2 F predicts E.
    """

    num_prefix: int  # P, frames of the mixture
    num_frames: int  # F, code frames per path
    num_segments: int  # tracks, or 1 when they are generated in parallel

    @property
    def codes_per_segment(self) -> int:
        return 2 * self.num_frames

    @property
    def segment_length(self) -> int:
        """Positions of a segment: its S and its codes; as many outputs: its codes and E."""
        return self.codes_per_segment + 1

    @property
    def num_steps(self) -> int:
        """Scored positions: 404 for four tracks of 4 s."""
        return self.num_segments * self.segment_length

    @property
    def length(self) -> int:
        """Positions of the whole sequence, `<mix>` and the prefix included."""
        return 1 + self.num_prefix + self.num_steps

    def segment_start(self, segment: int) -> int:
        """Position of the S of a segment."""
        return 1 + self.num_prefix + segment * self.segment_length

    @staticmethod
    def path(offset: int) -> int:
        """Path of code `offset` of a track: acoustic (0) and semantic (1) alternate."""
        return offset % 2


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
    position_embeds: torch.Tensor  # (B, segments, 2 F + 1, H)
    codebooks: list[torch.Tensor]  # by path, (Q, V, D) float32, if latents are asked for
    codes: torch.Tensor  # (B, segments, 2 F, tracks * Q) int64, result
    latents: torch.Tensor | None  # (B, segments, 2 F, tracks * D) float32, result, if asked for

    def choose(self, logits: torch.Tensor, segment: int, offset: int) -> torch.Tensor:
        """Write the results of one position; `(B, tracks, Q, V)` -> its codes `(B, tracks * Q)`."""
        if self.logits_processor:
            chosen = self.codes[:, segment, self.grammar.path(offset) : offset : 2]  # of this path and track
            rows = chosen.transpose(1, 2).flatten(0, 1)  # (B * tracks * Q, codes so far)
            logits = self.logits_processor(rows, logits.float().flatten(0, -2)).view(logits.shape)
        codes = self.sampler(logits, segment * self.grammar.codes_per_segment + offset).flatten(1)
        self.codes[:, segment, offset] = codes
        if self.latents is not None:
            with torch.autocast(logits.device.type, enabled=False):
                probabilities = logits.float().softmax(dim=-1)
                codebooks = self.codebooks[self.grammar.path(offset)]
                latents = torch.einsum("blqv,qvd->bld", probabilities, codebooks)
            self.latents[:, segment, offset] = latents.flatten(1)
        return codes


class MssGenerationMixin(GenerationMixin):
    """`generate` of a separator, in four steps: prefill, one position, one segment, all segments.

    It follows transformers' contract where a separation has what it is about: settings of sampling, candidates,
    processors of logits, streamers. The length of the result is known and nothing is searched, so the other settings of
    a GenerationConfig are refused.
    """

    @staticmethod
    def derive_seeds(seed: int, indices: Iterable[int]) -> list[int]:
        """One seed for each index (0 to 2^32 - 1), of (seed, index) alone.

        `generate` with an int seed uses `derive_seeds(seed, range(B))`. Give it `derive_seeds(seed, windows)` instead,
        and a song's samples do not depend on how its windows are batched.
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
        """One step: the codes of one position -> the logits of the next, `(B, tracks, Q, V)`.

        Args:
            codes: `(B, tracks * Q)`, of the other path; None stands for S.
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

    def decode_one_segment(
        self,
        state: DecodeState,
        segment: int,
        streamer: BaseStreamer | None = None,
        step_callback: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write the codes of a track, or of all tracks in parallel generation, into the state.

        E is forced after the last code: that code is read into the cache, and whatever follows it is dropped. After
        the last segment nothing follows, and the step is saved.
        """
        grammar, codes = state.grammar, None
        for offset in range(grammar.segment_length):
            is_code = offset < grammar.codes_per_segment
            if is_code or segment + 1 < grammar.num_segments:
                position = grammar.segment_start(segment) + offset
                logits = self.decode_one_token(
                    codes,
                    state.cache,
                    state.positions[:, position : position + 1],
                    state.position_embeds[:, segment, offset],
                    grammar.path(offset),
                )
            if is_code:
                codes = state.choose(logits, segment, offset)
                if streamer is not None:
                    streamer.put(codes.cpu())
            if step_callback is not None:
                step_callback(segment * grammar.segment_length + offset + 1, grammar.num_steps)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
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
        output_latents: bool = False,
        step_callback: Callable[[int, int], None] | None = None,
        **others,
    ) -> torch.LongTensor | MssGenerateOutput:
        """Generate the codes of the stems of a batch of windows.

        Args:
            input_features, input_values: the mixture, see `encode_mixture`.
            encoder_outputs: what `encode_mixture` gave for it, in their place.
            stems: names from `config.stems`; all if not given. Tracks are generated in the configured order up to the
                last one asked for (all of them in parallel generation), so vocals alone take a quarter of the steps.
            generation_config: of the five settings below; what it leaves open is as saved with the model.
            logits_processor: changes the scores of codes before one is chosen. It sees `(rows, V)`, a row for every
                candidate, (track,) and codebook, and as ids `(rows, n)` the n codes that it has for this row so far: of
                the same track and path.
            streamer: gets the codes of every position as they are chosen, `(B * N, tracks * Q)` on the CPU, track after
                track, acoustic and semantic alternating; the device is waited for at each.
            do_sample, temperature, top_k, top_p: greedy decoding, or sampling and its limits. Arguments win.
            num_return_sequences: N candidates of every window; the mixture is read once for all of them.
            seed: of sampling. A sequence holds one for each window, whose noise depends on its own seed alone,
                whatever else is in the batch; an int stands for `derive_seeds(seed, range(B))`. Candidates of a window
                have seeds derived from its own: the first ones are the same however many there are. If not given,
                seeds come from torch's global generator.
            output_latents: also return what the model expects in place of what it chose, see `MssGenerateOutput`.
            step_callback: called with (steps done, steps in all) after every position; an exception raised in it
                stops the generation.
            others: further fields of GenerationConfig, which are refused.

        Returns:
            `(B * N, len(stems), 2 F, Q)` int64, stems in the order asked for, candidates of a window one after another;
            with `output_latents` an `MssGenerateOutput`.

        Raises:
            ValueError: unknown stems, settings that `generate` does not follow, limits of sampling or several
                candidates without sampling, seeds that do not fit the batch, or an input the model does not read, or
                the mixture twice.
        """
        names = list(self.config.stems)
        stems = names if stems is None else [stems] if isinstance(stems, str) else list(stems)
        if not stems or not set(stems) <= set(names):
            raise ValueError(f"`stems` must be some of {names}, got {stems}.")
        chosen = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen["num_return_sequences"] = num_return_sequences
        settings = sampling_settings(self.generation_config, generation_config, chosen, others)
        num_candidates = settings.num_return_sequences or 1

        if encoder_outputs is not None and (input_features is not None or input_values is not None):
            raise ValueError("`encoder_outputs` stand in place of the mixture: leave its features out.")
        mixture = self.encode_mixture(input_features, input_values) if encoder_outputs is None else encoder_outputs
        prefix = mixture.prefix
        tracks = [names.index(stem) for stem in stems]
        num_segments = 1 + max(tracks) if self.config.tracks_per_position == 1 else 1
        grammar = TokenGrammar(prefix.shape[1], self.num_code_frames(prefix), num_segments)
        noise = self._noise(seed, num_candidates, grammar, prefix) if settings.do_sample else None
        results = (len(prefix) * num_candidates, num_segments, grammar.codes_per_segment)
        num_codes = self.config.tracks_per_position * self.config.num_codebooks
        state = DecodeState(
            grammar=grammar,
            logits_processor=LogitsProcessorList(logits_processor or []),
            sampler=CodeSampler(settings, noise),
            cache=Cache([PreallocatedLayer(grammar.length, num_candidates) for _ in self.decoder.layers]),
            positions=torch.arange(grammar.length, device=prefix.device)[None],
            position_embeds=self.position_embeds(mixture, num_segments).repeat_interleave(num_candidates, dim=0),
            codebooks=[],
            codes=prefix.new_empty(*results, num_codes, dtype=torch.long),
            latents=None,
        )
        if output_latents:
            quantizers = self.codec.acoustic_quantizer, self.codec.semantic_quantizer
            state.codebooks = [quantizer.codebooks.float() for quantizer in quantizers]
            size = self.config.tracks_per_position * self.config.codec_config.latent_size
            state.latents = prefix.new_empty(*results, size, dtype=torch.float32)
        self.prefill(prefix, state.cache)
        for segment in range(num_segments):
            self.decode_one_segment(state, segment, streamer, step_callback)
        if streamer is not None:
            streamer.end()
        codes = self.to_stems(state.codes)[:, tracks]
        if not output_latents:
            return codes
        latents = self.to_stems(state.latents)[:, tracks].transpose(2, 3)
        return MssGenerateOutput(codes, latents[..., 0::2], latents[..., 1::2])

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
        num_values = self.config.tracks_per_position * self.config.num_codebooks * self.config.codebook_size
        return CounterNoise(seeds, grammar.num_segments * grammar.codes_per_segment, num_values, prefix.device)
