"""The separator: a language model that writes the codes of all stems after reading the mixture.

    x = [<mix>, F_mix, S, c(1), S, c(2), S, c(3), S, c(4)]      inputs
    y = [              c(1), E, c(2), E, c(3), E, c(4), E]      scored outputs, c = a0 s0 a1 s1 ...

arXiv 2604.09371, section 2; docs/method.md says what is where. One position holds the indices of all codebook layers
of one path: acoustic (a) and semantic (s) alternate. The model knows no audio: features in, codes out.

Shapes: B windows, P prefix positions, F code frames of a window (50 in 4 s), Q codebooks, V codebook size, H hidden
size. A segment is a run of 2 F + 1 positions: S and the codes of a track. In sequential generation there is one
segment per stem, and a position has the codes of one track; in parallel generation (ablation A3) there is one segment,
and every position has the codes of all tracks.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from .checkpoint_mss import CheckedWeights
from .configuration_mss import MssConfig
from .conformer_mss import BATCH_NORMS, MssEncoder, UncountedRepetition
from .generation_mss import MssGenerationMixin
from .masks_mss import mask_loss, scaled_log_mel
from .modeling_hcodec import HCodecModel
from .semantic_hcodec import HubertFeatures

ACOUSTIC, SEMANTIC = 0, 1  # the two paths of the codec, in the order in which they alternate


@dataclass
class MssOutput(ModelOutput):
    """Result of teacher forcing.

    loss: scalar, of the codes and `mask_loss_weight` times that of the masks, whichever targets were given. logits
    `(B, stems, 2 F + 1, Q, V + 1)`: position j scores code j of its track (E at j = 2 F); class V is E, minus infinity
    where E cannot be. codebook_losses and codebook_accuracies `(stems, Q)`, means over positions (label-smoothed
    cross-entropy in nats, before weighting; share of positions whose arg max is the label).
    end_accuracies `(stems,)`: share of tracks and codebooks whose arg max at the last position is E, which generation
    forces there; NaN for stems that no track of the batch is known of.
    mask_loss: scalar. masks `(B, stems, L, num_mel_bins)`, see `MssForConditionalGeneration.masks`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    codebook_losses: torch.FloatTensor | None = None
    codebook_accuracies: torch.FloatTensor | None = None
    end_accuracies: torch.FloatTensor | None = None
    mask_loss: torch.FloatTensor | None = None
    masks: torch.FloatTensor | None = None


@dataclass
class MssMixture(ModelOutput):
    """What the conditional encoder makes of windows of the mixture.

    prefix `(B, P, H)` with P = L / prefix_stride: F_mix. mask_logits `(B, stems, L, num_mel_bins)`, and masked_log_mel,
    the log-mel of the mixture under each mask, of the same shape, without a gradient: with a mask head only.
    """

    prefix: torch.FloatTensor | None = None
    mask_logits: torch.FloatTensor | None = None
    masked_log_mel: torch.FloatTensor | None = None


class MssCodeEmbedding(nn.Module):
    """Indices of all layers (and tracks) of a position -> the sum of their vectors."""

    def __init__(self, config: MssConfig):
        super().__init__()
        self.tracks_per_position, self.num_codebooks = config.tracks_per_position, config.num_codebooks
        self.codebook_size, self.hidden_size = config.codebook_size, config.decoder_config.hidden_size
        self.learned = config.code_embedding == "learned"
        if self.learned:
            rows = 2 * config.tracks_per_position * config.num_codebooks * config.codebook_size
            self.table = nn.EmbeddingBag(rows, self.hidden_size, mode="sum")
        else:
            latent_size = config.codec_config.latent_size
            self.projections = nn.ModuleList(
                [nn.Linear(config.tracks_per_position * latent_size, self.hidden_size, bias=False) for _ in range(2)]
            )

    def forward(self, codes: torch.Tensor, path: int, quantizer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        """`(..., tracks * Q)` of one path -> `(..., H)` of this dtype.

        `quantizer` is that path's, read if vectors are the codec's.
        """
        shape = codes.shape
        if self.learned:
            offsets = torch.arange(shape[-1], device=codes.device) + path * shape[-1]
            rows = (codes + offsets * self.codebook_size).reshape(-1, shape[-1])
            return self.table(rows).view(*shape[:-1], self.hidden_size)
        per_track = codes.reshape(-1, self.tracks_per_position, self.num_codebooks).transpose(1, 2)  # (N, Q, tracks)
        latents = quantizer.decode(per_track)  # (N, D, tracks)
        latents = latents.transpose(1, 2).flatten(1).to(dtype)
        return self.projections[path](latents).view(*shape[:-1], self.hidden_size)


class MssPreTrainedModel(CheckedWeights, PreTrainedModel):
    config_class = MssConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "MssConformerLayer", "HCodecModel"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.EmbeddingBag):
            initialization.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            initialization.kaiming_uniform_(module.weight, a=5**0.5)  # as torch has it

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **options):
        """As in the base class, but batch norms count no batch twice. Models with batch norms cannot be compiled then:
        torch.compile takes no contexts of checkpoints.

        Raises:
            ValueError: `use_reentrant=True` in a model with batch norms.
        """
        if not any(isinstance(module, BATCH_NORMS) for module in self.modules()):
            return super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)
        given = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if given["use_reentrant"]:
            raise ValueError(
                "Gradient checkpointing with use_reentrant=True would count every batch twice in the batch norms of "
                "this model: leave it out, or pass use_reentrant=False."
            )
        super().gradient_checkpointing_enable({**given, "context_fn": self._checkpoint_contexts}, **options)

    def _checkpoint_contexts(self):
        """Of the first forward pass and of its repetition. A method: copies of a model are to guard their own norms."""
        return nullcontext(), UncountedRepetition(self)


class MssForConditionalGeneration(MssPreTrainedModel, MssGenerationMixin):
    """Conditional encoder, adapter, LLaMA, code heads, and the decoding half of the codec (frozen).

    Example:

    ```python
    >>> model = MssForConditionalGeneration.from_pretrained(path)
    >>> inputs = processor(song, sampling_rate=44100)               # input_features (B, 200, 120)
    >>> codes = model.generate(**inputs)                            # (B, stems, 100, 16)
    >>> audio = model.decode_codes(codes)                           # (B, stems, 192000) at 48 kHz
    >>> loss = model(**inputs, labels=codes).loss
    ```
    """

    def __init__(self, config: MssConfig):
        super().__init__(config)
        hidden_size = config.decoder_config.hidden_size
        if config.conditional_encoder == "hubert":
            self.encoder = HubertFeatures(config.encoder_config)
            self.main_input_name = "input_values"
            self._keep_in_fp32_modules = self._keep_in_fp32_modules_strict = ["encoder.hubert"]  # as the codec's own
        else:
            self.encoder = MssEncoder(config.encoder_config)
        self.adapter = nn.Linear(config.encoder_config.hidden_size * config.prefix_stride, hidden_size)
        self.code_embedding = MssCodeEmbedding(config)
        if config.track_embeddings:
            self.track_embedding = nn.Embedding(len(config.stems), hidden_size)
        if config.masked_conditioning:
            values = config.encoder_frames_per_code * config.encoder_config.num_mel_bins
            self.mask_adapter = nn.Sequential(
                nn.Linear(values, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
            )
        self.decoder = LlamaModel(config.decoder_config)
        num_heads = config.tracks_per_position * config.num_codebooks
        self.acoustic_head = nn.Linear(hidden_size, num_heads * (config.codebook_size + 1), bias=False)
        self.semantic_head = nn.Linear(hidden_size, num_heads * config.codebook_size, bias=False)
        self.codec = HCodecModel(config.codec_config)
        self.generation_config = GenerationConfig(do_sample=False)
        self.post_init()
        self.train()

    def train(self, mode: bool = True):
        super().train(mode)
        # Frozen, also after `from_pretrained`, which makes new parameters and then calls this.
        self.codec.eval().requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()  # nothing in it learns: no dropout
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of the two markers `<mix>` and S; codes have tables of their own (`code_embedding`)."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    def resize_token_embeddings(self, *arguments, **options):
        """Raises ValueError: the table has the two markers of the sequence, and codes have tables of their own."""
        raise ValueError("A separator has no vocabulary to resize: its symbols are the codes of its codec.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the language model computes in. A norm has it also where linear layers hold quantised integers."""
        return self.decoder.norm.weight.dtype

    def encode_mixture(
        self, input_features: torch.Tensor | None = None, input_values: torch.Tensor | None = None
    ) -> MssMixture:
        """The prefix F_mix, and with a mask head the masks.

        Args:
            input_features: log-mel frames `(B, L, num_mel_bins)`, for the Conformer.
            input_values: 16 kHz mono waveform `(B, T)`, for the HuBERT of ablation A1.

        Raises:
            ValueError: the input is not the one this model reads, or no whole number of code frames long.
        """
        wanted = "input_values" if self.config.conditional_encoder == "hubert" else "input_features"
        inputs = input_values if wanted == "input_values" else input_features
        if inputs is None:
            raise ValueError(f"This model reads `{wanted}` (conditional encoder: {self.config.conditional_encoder!r}).")
        inputs = inputs.to(self.compute_dtype)
        frames, mask_logits = (self.encoder(inputs), None) if wanted == "input_values" else self.encoder(inputs)
        if frames.shape[1] == 0 or frames.shape[1] % self.config.prefix_frames_per_code_frame:
            raise ValueError(
                f"`{wanted}` must cover whole code frames: got {frames.shape[1]} encoder frames, allowed are multiples "
                f"of {self.config.prefix_frames_per_code_frame}."
            )
        frames = frames.to(self.compute_dtype)  # a HuBERT computes in float32
        prefix = self.adapter(frames.unflatten(1, (-1, self.config.prefix_stride)).flatten(2))
        if mask_logits is None:
            return MssMixture(prefix)
        return MssMixture(prefix, mask_logits, inputs[:, None] + mask_logits.detach().log_softmax(dim=1))

    def masks(
        self, input_features: torch.Tensor | None = None, encoder_outputs: MssMixture | None = None
    ) -> torch.Tensor:
        """Which share of the mixture each stem has; needs no language model.

        Args:
            input_features: log-mel frames `(B, L, num_mel_bins)` of any length L.
            encoder_outputs: what `encode_mixture` gave for them, in their place.

        Returns:
            `(B, stems, L, num_mel_bins)` float32; the stems add up to 1.

        Raises:
            ValueError: the model has no mask head.
        """
        if not self.config.mask_head:
            raise ValueError("This model has no masks: it was configured with mask_head=False.")
        if encoder_outputs is not None:
            return self._as_masks(encoder_outputs.mask_logits)
        _, logits = self.encoder(input_features.to(self.compute_dtype))
        return self._as_masks(logits)

    def _as_masks(self, mask_logits: torch.Tensor) -> torch.Tensor:
        return (mask_logits.float() / self.config.mask_temperature).softmax(dim=1)

    def position_embeds(self, mixture: MssMixture, num_segments: int) -> torch.Tensor:
        """What the options for small models add to the positions of the segments: `(B, num_segments, 2 F + 1, H)`.

        `aligned_conditioning`: a position gets the mixture of the half code frame (40 ms) whose code it predicts; the
        last one, which predicts E, gets nothing. `masked_conditioning`: the same of the mixture under the mask of the
        segment's track. `track_embeddings`: the vector of the segment's track.
        """
        prefix, stride = mixture.prefix, self.config.prefix_stride
        batch, length = len(prefix), 2 * self.num_code_frames(prefix) + 1
        frames_per_code = self.config.encoder_frames_per_code
        embeds = prefix.new_zeros(1, 1, 1, prefix.shape[-1])
        if self.config.aligned_conditioning:
            if stride <= frames_per_code:
                aligned = prefix.unflatten(1, (-1, frames_per_code // stride)).mean(dim=2)
            else:
                aligned = prefix.repeat_interleave(stride // frames_per_code, dim=1)
            embeds = embeds + functional.pad(aligned, (0, 0, 0, 1))[:, None]
        if self.config.masked_conditioning:
            told = scaled_log_mel(mixture.masked_log_mel[:, :num_segments])
            told = told.unflatten(2, (-1, frames_per_code)).flatten(3).flatten(0, 1)  # bitsandbytes takes three axes
            told = self.mask_adapter(told).unflatten(0, (batch, -1))
            embeds = embeds + functional.pad(told, (0, 0, 0, 1))
        if self.config.track_embeddings:
            embeds = embeds + self.track_embedding.weight[:num_segments, None]
        return embeds.expand(batch, num_segments, length, -1)

    def num_code_frames(self, prefix: torch.Tensor) -> int:
        """F, the code frames of a window with this prefix."""
        return prefix.shape[1] * self.config.prefix_stride // self.config.prefix_frames_per_code_frame

    def embed_codes(self, codes: torch.Tensor, path: int) -> torch.Tensor:
        """Codes of one path `(..., tracks * Q)` -> input vectors `(..., H)`."""
        quantizer = self.codec.acoustic_quantizer if path == ACOUSTIC else self.codec.semantic_quantizer
        return self.code_embedding(codes, path, quantizer, self.compute_dtype)

    def code_logits(self, hidden_states: torch.Tensor, path: int) -> torch.Tensor:
        """Hidden states `(..., H)` -> `(..., tracks, Q, V + 1)` (acoustic) or `(..., tracks, Q, V)` (semantic)."""
        head = self.acoustic_head if path == ACOUSTIC else self.semantic_head
        logits = head(hidden_states.flatten(0, -2))  # bitsandbytes takes no more than three axes
        return logits.view(*hidden_states.shape[:-1], self.config.tracks_per_position, self.config.num_codebooks, -1)

    def to_segments(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Codes by stem `(B, stems, 2 F, Q)` -> by position `(B, segments, 2 F, tracks * Q)`."""
        codes = audio_codes.unflatten(1, (-1, self.config.tracks_per_position))
        return codes.transpose(2, 3).flatten(3)

    def to_stems(self, codes: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_segments`."""
        codes = codes.unflatten(3, (self.config.tracks_per_position, -1))
        return codes.transpose(2, 3).flatten(1, 2)

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor, num_codebooks: int | None = None) -> torch.Tensor:
        """Codes to sound.

        Args:
            codes: `(B, stems, 2 F, Q)`, as `generate` gives them.
            num_codebooks: decode the first so many layers only, which leaves out details, and errors of a small model.

        Returns:
            waveforms `(B, stems, T)` at the codec's rate, 3840 samples a code frame.

        Raises:
            ValueError: codes of another shape.
        """
        if codes.dim() != 4 or codes.shape[2] % 2:
            raise ValueError(
                f"`codes` must have shape (batch, stems, 2 x frames, codebooks), got {tuple(codes.shape)}."
            )
        audio = self.codec.decode(audio_codes=codes[..., :num_codebooks].flatten(0, 1)).audio_values
        return audio.unflatten(0, codes.shape[:2])

    def start_embeds(self, *shape: int) -> torch.Tensor:
        """The vector of S, `(*shape, H)`."""
        return self.decoder.embed_tokens.weight[self.config.start_token_id].expand(*shape, -1)

    def segment_embeds(self, codes: torch.Tensor) -> torch.Tensor:
        """S and the codes of every segment: `(B, segments, 2 F, tracks * Q)` -> `(B, segments, 2 F + 1, H)`."""
        acoustic = self.embed_codes(codes[:, :, 0::2], ACOUSTIC)
        semantic = self.embed_codes(codes[:, :, 1::2], SEMANTIC)
        alternating = torch.stack((acoustic, semantic), dim=3).flatten(2, 3)
        return torch.cat((self.start_embeds(*codes.shape[:2], 1), alternating), dim=2)

    def prefix_embeds(self, prefix: torch.Tensor) -> torch.Tensor:
        """`<mix>` and the prefix: `(B, P, H)` -> `(B, 1 + P, H)`."""
        mix = self.decoder.embed_tokens.weight[self.config.mix_token_id].expand(len(prefix), 1, -1)
        return torch.cat((mix, prefix), dim=1)

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        audio_codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        stem_powers: torch.Tensor | None = None,
        known_stems: torch.Tensor | None = None,
        return_logits: bool = True,
    ) -> MssOutput:
        """Teacher forcing of the codes, loss of the masks, or both.

        Args:
            input_features, input_values: the mixture, see `encode_mixture`.
            audio_codes: `(B, stems, 2 F, Q)` int64, acoustic and semantic codes alternating. Without them, but with
                `stem_powers`, the language model is left out.
            labels: the same codes, under the name that transformers' `Trainer` looks for. (To evaluate masks alone it
                needs `TrainingArguments(label_names=["stem_powers"])`.)
            stem_powers: mel powers `(B, stems, L, num_mel_bins)` of the true stems (`mel_power_spectrogram` of
                processing_mss), for the loss of the masks.
            known_stems: `(B, stems)` bool, which of the targets count by themselves: codes of other stems have no part
                in the loss, their powers count as one sum (see `mask_loss`). All of them if not given.
            return_logits: False saves their memory in training (26 MB a crop at the paper's size).

        Raises:
            ValueError: no targets, codes under both names, targets that do not fit the mixture, or `stem_powers`
                without a mask head.
        """
        if labels is not None and audio_codes is not None:
            raise ValueError("`labels` is another name of `audio_codes`: pass one of them, got both.")
        audio_codes = labels if audio_codes is None else audio_codes
        mixture = self.encode_mixture(input_features, input_values)
        output = MssOutput()
        if audio_codes is not None or stem_powers is None:
            output = self._code_output(mixture, audio_codes, known_stems, return_logits)
        if mixture.mask_logits is not None:
            output.masks = self._as_masks(mixture.mask_logits)
        if stem_powers is not None:
            expected = None if mixture.mask_logits is None else tuple(mixture.mask_logits.shape)
            if tuple(stem_powers.shape) != expected:
                raise ValueError(
                    f"`stem_powers` must have shape (batch, stems, frames, bands) = {expected} for this mixture (None: "
                    f"this model has no mask head), got {tuple(stem_powers.shape)}."
                )
            output.mask_loss = mask_loss(mixture.mask_logits, stem_powers, known_stems)
            weighted = self.config.mask_loss_weight * output.mask_loss
            output.loss = weighted if output.loss is None else output.loss + weighted
        return output

    def _code_output(
        self,
        mixture: MssMixture,
        audio_codes: torch.Tensor | None,
        known_stems: torch.Tensor | None,
        return_logits: bool,
    ) -> MssOutput:
        """Loss, logits and scores of the codes."""
        prefix = mixture.prefix
        num_frames = self.num_code_frames(prefix)
        expected = (len(prefix), len(self.config.stems), 2 * num_frames, self.config.num_codebooks)
        if audio_codes is None or tuple(audio_codes.shape) != expected:
            raise ValueError(
                f"`audio_codes` must have shape (batch, stems, 2 x frames, codebooks) = {expected} for this mixture, "
                f"got {None if audio_codes is None else tuple(audio_codes.shape)}. To separate, use `generate`."
            )
        if not torch.compiler.is_compiling():
            low, high = audio_codes.aminmax()
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(
                    f"Codes must be from 0 to {self.config.codebook_size - 1}, got {low} to {high}; what is not to be "
                    "learned is left out by `known_stems`."
                )
        segments = self.segment_embeds(self.to_segments(audio_codes))
        segments = segments + self.position_embeds(mixture, segments.shape[1])
        embeds = torch.cat((self.prefix_embeds(prefix), segments.flatten(1, 2)), dim=1)
        hidden_states = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        hidden_states = hidden_states[:, 1 + prefix.shape[1] :].unflatten(1, segments.shape[1:3])

        # (B, segments, positions, tracks, Q, classes) -> (B, stems, positions, Q, classes)
        acoustic, semantic = (
            self.code_logits(hidden_states[:, :, path::2], path).transpose(2, 3).flatten(1, 2)
            for path in (ACOUSTIC, SEMANTIC)
        )
        logits = self._join_logits(acoustic, semantic) if return_logits else None
        end = audio_codes.new_full((*expected[:2], 1, expected[-1]), self.config.end_code)
        acoustic_labels = torch.cat((audio_codes[:, :, 0::2], end), dim=2)
        counts = acoustic_labels.new_ones(expected[:2]) if known_stems is None else known_stems.long()  # (B, stems)
        acoustic_losses, acoustic_hits = self._score(acoustic, acoustic_labels, counts)
        semantic_losses, semantic_hits = self._score(semantic, audio_codes[:, :, 1::2], counts)
        losses, hits = acoustic_losses + semantic_losses, acoustic_hits + semantic_hits  # (stems, Q), sums
        num_positions = (2 * num_frames + 1) * counts.sum(dim=0)[:, None]  # (stems, 1)
        ends = (acoustic[:, :, -1].detach().argmax(dim=-1) == self.config.end_code).float().mean(dim=-1)  # (B, stems)
        weights = torch.tensor(self.config.codebook_loss_weights, device=losses.device)
        return MssOutput(
            loss=(weights * losses.sum(dim=0)).sum() / num_positions.sum().clamp(min=1),
            logits=logits,
            codebook_losses=losses.detach() / num_positions.clamp(min=1),
            codebook_accuracies=hits / num_positions.clamp(min=1),
            end_accuracies=(ends * counts).sum(dim=0) / counts.sum(dim=0),
        )

    def _join_logits(self, acoustic: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """Logits of both paths in the order of the positions; minus infinity where E cannot be."""
        length = acoustic.shape[2] + semantic.shape[2]
        logits = acoustic.new_full((*acoustic.shape[:2], length, *acoustic.shape[3:]), float("-inf"))
        logits[:, :, 0::2] = acoustic
        logits[:, :, 1::2, :, : self.config.codebook_size] = semantic
        return logits

    def _score(
        self, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over batch and positions of label-smoothed cross-entropy and of hits, each `(stems, Q)`, in float32.

        `counts` `(B, stems)` is 0 for tracks that are left out.
        """
        losses = functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        hits = logits.detach().argmax(dim=-1) == labels
        counts = counts[:, :, None, None]
        return (losses.view(labels.shape) * counts).sum(dim=(0, 2)), (hits * counts).sum(dim=(0, 2)).float()


__all__ = ["MssForConditionalGeneration"]
