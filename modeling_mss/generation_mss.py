"""The token grammar and the decode loop.

Every window has the same length, and the length of a track is known, so there is nothing to pad, to schedule or to
stop early: all windows of a song decode in lockstep, the key-value cache has its final size from the start, codes,
noise and latents stay on the device, and the host never waits for a result inside the loop. Where the loop stands is
known to the device, too, so that a step can be captured as a CUDA graph (see cuda_graphs_mss.py).
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from transformers import Cache, GenerationConfig, GenerationMixin, LlamaModel, LogitsProcessorList
from transformers.cache_utils import StaticLayer
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .cuda_graphs_mss import Capture, GraphedCalls, KeptStates, graph_capture, places
from .sampling_mss import FOLLOWED, MASK_32, CodeSampler, CounterNoise, hash_words, sampling_settings

BUCKET_SIZE = 128  # positions by which the context of captured steps grows; each size is a graph of its own

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


@dataclass
class Cursor:
    """Where the decode loop stands."""

    position: torch.Tensor  # (1,) int64 on the device, of the whole sequence: the one to read next
    context: int = 0  # how many positions attention sees, counted from the first one; 0 while the mixture is read


class PreallocatedLayer(StaticLayer):
    """The cache of one layer. It has its final size from the start, but attention sees the context only.

    Transformers' static layer, which is made for compilation, shows attention all positions, empty ones too.

    Args:
        max_cache_len: positions.
        cursor: where to write, and how much to show.
        num_repeats: the mixture is read in B rows; what follows goes on from so many copies of each,
            `B * num_repeats` rows.
    """

    is_compileable = False

    def __init__(self, max_cache_len: int, cursor: Cursor, num_repeats: int = 1):
        super().__init__(max_cache_len)
        self.cursor, self.num_repeats = cursor, num_repeats

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `(rows, heads, T, head size)` of both; what attention is to see of them, the mixture's own rows or
        views of the context.

        What attention layers pass besides differs between versions of transformers and is for other kinds of caches.
        """
        context, length = self.cursor.context, key_states.shape[-2]
        if context == 0:
            states = key_states, value_states
            if self.num_repeats > 1:
                states = tuple(values.repeat_interleave(self.num_repeats, dim=0) for values in states)
            if not self.is_initialized:
                self.lazy_initialization(*states)
            self.keys[:, :, :length], self.values[:, :, :length] = states
            return key_states, value_states
        self.keys.index_copy_(2, self.cursor.position, key_states)
        self.values.index_copy_(2, self.cursor.position, value_states)
        return self.keys[:, :, :context], self.values[:, :, :context]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.context or query_length, 0

    def get_seq_length(self) -> int:
        return max(self.cursor.context - 1, 0)


@dataclass
class DecodeState:
    """What the steps of one call of `generate` read and write: tensors that stay where they are on the device, so that
    graphs of the steps serve later calls, too. D is the size of the codec's latents, and B here counts candidates.
    """

    grammar: TokenGrammar
    bucket_size: int  # contexts are multiples of it; with 1 there is nothing empty in them
    logits_processor: LogitsProcessorList
    sampler: CodeSampler
    cursor: Cursor
    cache: Cache
    inputs: torch.Tensor  # (B, 1, H), vector of the symbol at the next position
    position_embeds: torch.Tensor  # (B, steps, H)
    num_codes: torch.Tensor  # (1,) int64, positions that have their codes
    codebooks: list[torch.Tensor]  # by path, (Q, V, D) float32, if latents are asked for
    codes: torch.Tensor  # (B, segments * 2 F, tracks * Q) int64, result
    latents: torch.Tensor | None  # (B, segments * 2 F, tracks * D) float32, result, if asked for
    calls: GraphedCalls

    def begin(
        self, position_embeds: torch.Tensor, codebooks: Sequence[torch.Tensor], seeds: Sequence[int] | None
    ) -> None:
        """Start with other windows, whatever was decoded before.

        Args:
            position_embeds: `(windows, segments, 2 F + 1, H)`; candidates share them.
            codebooks: as above.
            seeds: one for each candidate, if they are sampled.
        """
        self.cache.reset()  # zeros: a mask hides what is left of another song, but not if it is NaN
        self.cursor.position.fill_(self.grammar.segment_start(0))
        self.cursor.context = 0
        self.num_codes.zero_()
        windows, segments, length, _ = position_embeds.shape
        self.position_embeds.view(windows, -1, segments, length, self.inputs.shape[-1]).copy_(position_embeds[:, None])
        for kept, vectors in zip(self.codebooks, codebooks):
            kept.copy_(vectors)
        if seeds is not None:
            self.sampler.noise.reseed(seeds)

    def contexts(self, position: int, count: int) -> tuple[int, ...]:
        """The contexts of `count` positions from this one on; the same for all of them if they are rounded up."""
        if self.bucket_size == 1:
            return tuple(range(position + 1, position + count + 1))
        return (round_up(position + count, self.bucket_size),) * count

    def mask(self) -> torch.Tensor | None:
        """What is added to the scores of attention, `(1, 1, 1, context)`: minus infinity where it is still empty."""
        if self.bucket_size == 1:
            return None
        empty = torch.arange(self.cursor.context, device=self.inputs.device) > self.cursor.position
        return self.inputs.new_zeros(1, 1, 1, self.cursor.context).masked_fill(empty, -torch.inf)

    def choose(self, logits: torch.Tensor, path: int, chosen: slice) -> torch.Tensor:
        """Write the results of one position; `(B, tracks, Q, V)` -> its codes `(B, tracks * Q)`.

        `chosen`: where the codes before it are, of the same path and track.
        """
        if self.logits_processor:
            rows = self.codes[:, chosen].transpose(1, 2).flatten(0, 1)  # (B * tracks * Q, codes so far)
            logits = self.logits_processor(rows, logits.float().flatten(0, -2)).view(logits.shape)
        codes = self.sampler(logits, self.num_codes).flatten(1)
        self.codes.index_copy_(1, self.num_codes, codes[:, None])
        if self.latents is not None:
            with torch.autocast(logits.device.type, enabled=False):
                probabilities = logits.float().softmax(dim=-1)
                latents = torch.einsum("blqv,qvd->bld", probabilities, self.codebooks[path])
            self.latents.index_copy_(1, self.num_codes, latents.flatten(1)[:, None])
        self.num_codes.add_(1)
        return codes


def round_up(number: int, size: int) -> int:
    return -(-number // size) * size


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

    def read_one_token(self, state: DecodeState, context: int) -> torch.Tensor:
        """Read the next position; its hidden states `(B, H)`."""
        position, step = state.cursor.position, state.cursor.position - state.grammar.segment_start(0)
        state.cursor.context = context
        hidden_states = self.decoder(
            inputs_embeds=state.inputs + state.position_embeds.index_select(1, step),
            position_ids=position[None],
            attention_mask=state.mask(),
            use_cache=True,
            **{CACHE: state.cache},
        ).last_hidden_state[:, -1]
        position.add_(1)
        return hidden_states

    def decode_one_token(self, state: DecodeState, context: int, path: int) -> torch.Tensor:
        """Read the next position; the logits of its codes `(B, tracks, Q, V)`.

        `path` of these codes. E is masked: the acoustic heads' last class is not read.
        """
        return self.code_logits(self.read_one_token(state, context), path)[..., : self.config.codebook_size]

    def decode_one_frame(self, state: DecodeState, contexts: Sequence[int], segment: int, frame: int) -> None:
        """Two positions, which write the acoustic and the semantic codes of a frame into the state.

        This is what is captured, once for all frames of the same contexts: `segment` and `frame` tell nothing but what
        processors of logits see.
        """
        start = segment * state.grammar.codes_per_segment
        for path, context in enumerate(contexts):
            logits = self.decode_one_token(state, context, path)
            codes = state.choose(logits, path, slice(start + path, start + 2 * frame, 2))
            state.inputs.copy_(self.embed_codes(codes, path)[:, None])

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
        grammar, start = state.grammar, state.grammar.segment_start(segment)
        state.inputs.copy_(self.start_embeds(len(state.inputs), 1))
        for frame in range(grammar.num_frames):
            contexts = state.contexts(start + 2 * frame, 2)
            state.calls(contexts, partial(self.decode_one_frame, state, contexts, segment, frame))
            if streamer is not None:
                first = segment * grammar.codes_per_segment + 2 * frame
                for codes in state.codes[:, first : first + 2].cpu().unbind(dim=1):
                    streamer.put(codes)
            if step_callback is not None:
                step_callback(segment * grammar.segment_length + 2 * (frame + 1), grammar.num_steps)
        if segment + 1 < grammar.num_segments:
            contexts = state.contexts(start + grammar.codes_per_segment, 1)
            state.calls(contexts, partial(self.read_one_token, state, *contexts))
        if step_callback is not None:
            step_callback((segment + 1) * grammar.segment_length, grammar.num_steps)

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
        track_callback: Callable[[str, MssGenerateOutput], None] | None = None,
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
            streamer: gets the codes of every position, `(B * N, tracks * Q)` on the CPU, track after track, acoustic
                and semantic alternating; the device is waited for after each code frame.
            do_sample, temperature, top_k, top_p: greedy decoding, or sampling and its limits. Arguments win.
            num_return_sequences: N candidates of every window; the mixture is read once for all of them.
            seed: of sampling. A sequence holds one for each window, whose noise depends on its own seed alone,
                whatever else is in the batch; an int stands for `derive_seeds(seed, range(B))`. Candidates of a window
                have seeds derived from its own: the first ones are the same however many there are. If not given,
                seeds come from torch's global generator.
            output_latents: also return what the model expects in place of what it chose, see `MssGenerateOutput`.
            step_callback: called with (steps done, steps in all) after every code frame, which is two steps, and at
                the end of every track, one step more; an exception raised in it stops the generation.
            track_callback: called with a stem that was asked for and its output, codes `(B * N, 1, 2 F, Q)` and latents
                of the same kind, as soon as its track has been launched to its end, in the order in which tracks are
                generated (in parallel generation all of them at the end). So its sound can be decoded while the next
                track is written; on another CUDA stream, which then has to wait for this one first.
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
        prefix, num_parallel = mixture.prefix, self.config.tracks_per_position
        tracks = [names.index(stem) for stem in stems]
        num_segments = 1 + max(tracks) if num_parallel == 1 else 1
        seeds = self._candidate_seeds(seed, len(prefix), num_candidates) if settings.do_sample else None
        grammar = TokenGrammar(prefix.shape[1], self.num_code_frames(prefix), num_segments)
        processor = LogitsProcessorList(logits_processor or [])

        capture = None if processor else graph_capture(self, prefix.device)
        kept = state = key = None
        if capture is not None:
            kept = vars(self).setdefault("kept_states", KeptStates())
            sampling = tuple(getattr(settings, name) for name in FOLLOWED)
            key = grammar, sampling, output_latents, prefix.shape, prefix.dtype, places(self, prefix.device)
            state = kept.take(key)
        if state is None:
            state = self._decode_state(prefix, grammar, settings, processor, output_latents, capture)
        quantizers = (self.codec.acoustic_quantizer, self.codec.semantic_quantizer) if output_latents else ()
        codebooks = [quantizer.codebooks for quantizer in quantizers]
        state.begin(self.position_embeds(mixture, num_segments), codebooks, seeds)

        self.prefill(prefix, state.cache)
        for segment in range(num_segments):
            self.decode_one_segment(state, segment, streamer, step_callback)
            for track in range(segment * num_parallel, (segment + 1) * num_parallel):
                if track_callback is not None and track in tracks:
                    track_callback(names[track], self._output(state, [track]))
        if streamer is not None:
            streamer.end()
        output = self._output(state, tracks)
        if kept is not None:
            kept.keep(key, state)
        return output if output_latents else output.codes

    def _decode_state(
        self,
        prefix: torch.Tensor,
        grammar: TokenGrammar,
        settings: GenerationConfig,
        logits_processor: LogitsProcessorList,
        output_latents: bool,
        capture: Capture | None,
    ) -> DecodeState:
        """Room for decoding windows with a prefix like this one."""
        config, device, num_parallel = self.config, prefix.device, self.config.tracks_per_position
        num_candidates = settings.num_return_sequences or 1
        rows, num_codes = len(prefix) * num_candidates, grammar.num_segments * grammar.codes_per_segment
        noise, codebooks, latents = None, [], None
        if settings.do_sample:
            num_values = num_parallel * config.num_codebooks * config.codebook_size
            noise = CounterNoise([0] * rows, num_codes, num_values, device)
        if output_latents:
            shape = config.num_codebooks, config.codebook_size, config.codec_config.latent_size
            codebooks = [prefix.new_empty(shape, dtype=torch.float32) for _ in range(2)]
            latents = prefix.new_empty(rows, num_codes, num_parallel * shape[-1], dtype=torch.float32)
        bucket_size = 1 if capture is None else BUCKET_SIZE
        cursor = Cursor(position=torch.zeros(1, dtype=torch.long, device=device))
        cache_length = round_up(grammar.length, bucket_size)
        inputs = prefix.new_empty(rows, 1, prefix.shape[-1], dtype=self.compute_dtype)
        chosen = torch.zeros(1, dtype=torch.long, device=device)
        return DecodeState(
            grammar=grammar,
            bucket_size=bucket_size,
            logits_processor=logits_processor,
            sampler=CodeSampler(settings, noise),
            cursor=cursor,
            cache=Cache([PreallocatedLayer(cache_length, cursor, num_candidates) for _ in self.decoder.layers]),
            inputs=inputs,
            position_embeds=inputs.new_empty(rows, grammar.num_steps, prefix.shape[-1]),
            num_codes=chosen,
            codebooks=codebooks,
            codes=prefix.new_empty(rows, num_codes, num_parallel * config.num_codebooks, dtype=torch.long),
            latents=latents,
            calls=GraphedCalls(capture, (cursor.position, chosen, inputs)),
        )

    def _output(self, state: DecodeState, tracks: list[int]) -> MssGenerateOutput:
        """Copies of the codes, and of the latents if there are any, of some tracks."""
        shape = state.grammar.num_segments, state.grammar.codes_per_segment

        def copied(values: torch.Tensor) -> torch.Tensor:
            stems = self.to_stems(values.unflatten(1, shape))
            return torch.stack([stems[:, track] for track in tracks], dim=1)  # for a list as index the host would wait

        codes = copied(state.codes)
        if state.latents is None:
            return MssGenerateOutput(codes)
        latents = copied(state.latents).transpose(2, 3)
        return MssGenerateOutput(codes, latents[..., 0::2], latents[..., 1::2])

    def _candidate_seeds(self, seed: int | Sequence[int] | None, num_windows: int, num_candidates: int) -> list[int]:
        """Seeds of the candidates of windows; `seed` as in `generate`."""
        if seed is None:
            seed = torch.randint(2**63 - 1, (num_windows,)).tolist()
        seeds = self.derive_seeds(int(seed), range(num_windows)) if isinstance(seed, Integral) else list(seed)
        if len(seeds) != num_windows:
            raise ValueError(f"`seed` must be an int or one for each of {num_windows} windows, got {len(seeds)}.")
        return [candidate for window in seeds for candidate in self.derive_seeds(window, range(num_candidates))]
