"""Configuration of the separator: conditional encoder, language model and codec."""

import copy
import math

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig, LlamaConfig, PreTrainedConfig

from .checkpoint_mss import (
    WIDTHS,
    CheckedConfig,
    require_affordable,
    require_one_of,
    require_transformer,
    require_whole_numbers,
)
from .configuration_hcodec import HCodecConfig, require_hubert

MEL_BINS = range(1, 4097)
CONV_CHANNELS = range(4, 4097, 4)
CANDIDATES = range(1, 1025)


@strict
class MssEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of the Conformer that reads the mixture's log-mel spectrogram. The defaults are the paper's
    (section 3.2), with widths that the paper does not name (docs/method.md).

    Args:
        num_mel_bins (`int`): log-mel bands of a frame.
        conv_kernel_size (`int`): kernel of the depthwise convolution, odd.
        conv_norm (`str`): norm inside the convolution module, `"layer_norm"` (statistics of one frame: the same in
            training and inference, whatever the batch and however many processes) or `"batch_norm"` (as in the
            Conformer paper; its statistics depend on both).
        dropout (`float`): after every module and inside the feed-forward modules.
        conv_channels (`list[int]`, *optional*): widths of a convolutional stem on the time x mel plane before the
            Conformer (off in the paper): one residual layer a width, the bands halved from one to the next. Multiples
            of 4.
        num_masks (`int`): masks that the encoder gives, one a stem; set by `MssConfig.mask_head`.
    """

    model_type = "mss_encoder"

    num_mel_bins: int = 120
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_kernel_size: int = 31
    conv_norm: str = "layer_norm"
    dropout: float = 0.1
    conv_channels: list[int] | tuple | None = None
    num_masks: int = 0
    rope_theta: float = 10000.0
    initializer_range: float = 0.02

    @property
    def bottom_size(self) -> int:
        """Values of a frame at the bottom of the convolutional stem; without one, the mel bands."""
        if not self.conv_channels:
            return self.num_mel_bins
        return self.conv_channels[-1] * self.num_mel_bins // 2 ** (len(self.conv_channels) - 1)

    def validate_architecture(self):
        """Called by the `strict` decorator after construction."""
        require_one_of(vars(self), {"conv_norm": ("batch_norm", "layer_norm")})
        require_transformer(vars(self), "encoder_config.")
        sizes = {"num_mel_bins": MEL_BINS, "conv_kernel_size": WIDTHS}
        require_whole_numbers(vars(self), sizes, "encoder_config.")
        if not 0 < self.rope_theta < math.inf:
            raise ValueError(f"`encoder_config.rope_theta` must be positive, got {self.rope_theta}.")
        channels = self.conv_channels or []
        if any(width not in CONV_CHANNELS for width in channels):
            raise ValueError(f"`conv_channels` must be multiples of 4 from 4 to {CONV_CHANNELS[-1]}, got {channels}.")
        if channels and self.num_mel_bins % 2 ** (len(channels) - 1):
            raise ValueError(
                f"`num_mel_bins` ({self.num_mel_bins}) must be divisible by {2 ** (len(channels) - 1)}: "
                f"{len(channels)} `conv_channels` halve the bands {len(channels) - 1} times."
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"`conv_kernel_size` must be odd, got {self.conv_kernel_size}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be an even multiple of `num_attention_heads` "
                f"({self.num_attention_heads}): rotary positions turn pairs of channels."
            )


PAPER_DECODER_SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
}


def _as_dict(config: dict | PreTrainedConfig | None) -> dict:
    return config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})


def _decoder_config(config: dict | PreTrainedConfig | None) -> LlamaConfig:
    """The language model's configuration: the paper's, or all four sizes of another. A `LlamaConfig` has them all."""
    values = _as_dict(config)
    missing = [name for name in PAPER_DECODER_SIZES if name not in values]
    if 0 < len(missing) < len(PAPER_DECODER_SIZES):
        raise ValueError(
            f"`decoder_config` must name all of {list(PAPER_DECODER_SIZES)} or none of them (then it has the paper's, "
            f"1.1 billion parameters), got no {missing}."
        )
    if missing:
        values |= PAPER_DECODER_SIZES
    # The vocabulary is the two markers of the sequence; codes have tables of their own.
    tokens = {"vocab_size": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    defaults = {"attention_dropout": 0.1, "max_position_embeddings": 4096}
    values = {**defaults, "num_key_value_heads": values["num_attention_heads"], **values, **tokens}
    require_transformer(values, "decoder_config.")  # before LlamaConfig divides by its heads
    require_whole_numbers(values, {"num_key_value_heads": WIDTHS}, "decoder_config.")
    return LlamaConfig(**values)


@strict
class MssConfig(CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of an [`MssForConditionalGeneration`]. The defaults are the paper's (arXiv 2604.09371, section 3).

    Args:
        stems (`list[str]`): the tracks, in the order in which they are generated. The one source of their names.
        conditional_encoder (`str`): `"conformer"` over log-mel, or `"hubert"`, a frozen HuBERT over the 16 kHz
            waveform (ablation A1; `encoder_config` is then a `HubertConfig`).
        codebook_loss_weights (`list[float]`, *optional*): weight of each codebook layer in the loss;
            [2, 1, ..., 1] if not given (A2 uses [8, 4, 3, 2, 2, 2, 2, 2, 1, ..., 1]).
        label_smoothing (`float`): of the loss.
        track_generation (`str`): `"sequential"`, one track after another, or `"parallel"`, all tracks in every
            position through track-specific tables and heads (ablation A3).
        prefix_stride (`int`): frames of the mixture merged into one position of the prefix: 1, 2 or 4.
        aligned_conditioning (`bool`): also add the mixture's frame to the input of the position that predicts the code
            of the same time.
        track_embeddings (`bool`): add a learned vector of its track to every position (sequential only).
        code_embedding (`str`): `"learned"`, a table per path and layer, or `"codebook"`, the codec's frozen vectors and
            a projection per path.
        mask_head (`bool`): the encoder also says which share of the mixture each stem has in every mel band and frame
            (`masks`). With `encoder_config.conv_channels` the masks are made by the mirror of that stem.
        mask_loss_weight (`float`): of the masks' loss beside that of the codes, where both are trained.
        mask_temperature (`float`): logits of masks are divided by it; above 1 masks are less sure. It is chosen on
            validation songs, after training, and changes neither the loss nor what the language model is told.
        masked_conditioning (`bool`): also tell every position the log-mel of the mixture under its own track's mask, at
            the time whose code it predicts (sequential only). No gradient goes that way into the masks.
        token_share (`float`): a of `filtered` output, whose masks are mask^(1 - a) * share^a, normalised, where share
            is the power of the generated stem over that of all; for models with `mask_head`.
        num_candidates (`int`): samples of every window that `filtered` output averages, unless a call of the pipeline
            says how many. `generate` gives one, or as many as it is asked for (`num_return_sequences`).
        outputs (`list[str]`, *optional*): what the checkpoint is good for, best first: "masked" (needs `mask_head`),
            "filtered", "generated". The first is the pipeline's default; others than these it refuses. If not given,
            "masked" if there is a `mask_head`, "filtered", "generated".
        encoder_config, decoder_config (`LlamaConfig`), codec_config (`HCodecConfig`, decoding half): parts, as
            configurations or dictionaries. A `decoder_config` names all of its sizes (`hidden_size`,
            `intermediate_size`, `num_hidden_layers`, `num_attention_heads`) or none.
        untrained (`bool`): says that a checkpoint holds random weights; the pipeline then warns.
    """

    model_type = "mss"
    # What `Trainer.predict` is not to gather: these are means over a batch.
    keys_to_ignore_at_inference = ["codebook_losses", "codebook_accuracies", "end_accuracies", "mask_loss"]
    sub_configs = {"encoder_config": MssEncoderConfig, "decoder_config": LlamaConfig, "codec_config": HCodecConfig}

    stems: list[str] | tuple = ("vocals", "drums", "bass", "other")
    conditional_encoder: str = "conformer"
    codebook_loss_weights: list[float] | list[int] | tuple | None = None
    label_smoothing: float = 0.1
    track_generation: str = "sequential"
    prefix_stride: int = 1
    aligned_conditioning: bool = False
    track_embeddings: bool = False
    code_embedding: str = "learned"
    mask_head: bool = False
    mask_loss_weight: float = 1.0
    mask_temperature: float = 1.0
    masked_conditioning: bool = False
    token_share: float = 0.5
    num_candidates: int = 1
    outputs: list[str] | tuple | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    decoder_config: dict | PreTrainedConfig | None = None
    codec_config: dict | PreTrainedConfig | None = None
    untrained: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        encoder_class = HubertConfig if self.conditional_encoder == "hubert" else MssEncoderConfig
        _require_kind(self.encoder_config, "encoder_config", encoder_class)
        _require_kind(self.decoder_config, "decoder_config", LlamaConfig)
        _require_kind(self.codec_config, "codec_config", HCodecConfig)
        if isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = copy.deepcopy(self.encoder_config)  # it is changed below
        else:
            self.encoder_config = encoder_class(**(self.encoder_config or {}))
        self.decoder_config = _decoder_config(self.decoder_config)
        self.codec_config = HCodecConfig(**{**_as_dict(self.codec_config), "decoder_only": True})
        self.stems = list(self.stems)
        if isinstance(self.encoder_config, MssEncoderConfig):
            self.encoder_config.num_masks = len(self.stems) if self.mask_head else 0
        if self.outputs is None:
            self.outputs = self.possible_outputs
        if self.codebook_loss_weights is None:
            self.codebook_loss_weights = [2.0] + [1.0] * (self.num_codebooks - 1)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict:
        """As in the base class, without `custom_pipelines`, which a loaded config.json may have: it names a file that a
        pipeline saves beside its model, and that a model alone does not have."""
        return {name: value for name, value in super().to_dict().items() if name != "custom_pipelines"}

    @property
    def num_codebooks(self) -> int:
        """Codebook layers of a path (16)."""
        return self.codec_config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of a codebook (1024)."""
        return self.codec_config.codebook_size

    @property
    def mix_token_id(self) -> int:
        """The marker `<mix>` that opens the sequence."""
        return 0

    @property
    def start_token_id(self) -> int:
        """The marker S that opens every track; an input only."""
        return 1

    @property
    def end_code(self) -> int:
        """The class E that closes every track: one more class of each acoustic head; an output only."""
        return self.codebook_size

    @property
    def possible_outputs(self) -> list[str]:
        """What a model of this architecture can be good for."""
        return [*(["masked"] if self.mask_head else []), "filtered", "generated"]

    @property
    def tracks_per_position(self) -> int:
        """Tracks that share a position: 1, or all of them in parallel generation."""
        return len(self.stems) if self.track_generation == "parallel" else 1

    @property
    def prefix_frames_per_code_frame(self) -> int:
        """Frames of the conditional encoder (50 a second) per code frame (12.5 a second) of a path."""
        return self.codec_config.stride

    @property
    def encoder_frames_per_code(self) -> int:
        """Frames of the conditional encoder per position, of which a code frame has two: one of each path."""
        return self.prefix_frames_per_code_frame // 2

    def validate_architecture(self):
        """Called by the `strict` decorator after construction."""
        choices = {"conditional_encoder": ("conformer", "hubert"), "track_generation": ("sequential", "parallel")}
        require_one_of(vars(self), choices | {"code_embedding": ("learned", "codebook"), "prefix_stride": (1, 2, 4)})
        if isinstance(self.encoder_config, HubertConfig):
            require_hubert(self.encoder_config, "encoder_config.")
        if self.prefix_frames_per_code_frame % math.lcm(2, self.prefix_stride):
            raise ValueError(
                f"`codec_config.stride` must be a multiple of 2 and of `prefix_stride` ({self.prefix_stride}), got "
                f"{self.prefix_frames_per_code_frame}: a code frame is two positions, and merged frames of the mixture."
            )
        num_codes = self.tracks_per_position * self.num_codebooks * self.codebook_size
        require_affordable(4 * num_codes * self.decoder_config.hidden_size, "Tables and heads of the codes")
        if not self.outputs or not set(self.outputs) <= set(self.possible_outputs):
            raise ValueError(
                f"`outputs` must be some of {self.possible_outputs} with mask_head={self.mask_head}, "
                f"got {self.outputs}."
            )
        if self.mask_head and self.conditional_encoder == "hubert":
            raise ValueError("`mask_head` needs conditional_encoder='conformer': masks lie on the log-mel plane.")
        if self.masked_conditioning and not (self.mask_head and self.track_generation == "sequential"):
            raise ValueError("`masked_conditioning` needs `mask_head` and `track_generation='sequential'`.")
        if not 0 < self.mask_temperature < math.inf or not 0 <= self.token_share <= 1:
            raise ValueError(
                "Need a positive `mask_temperature` and 0 <= `token_share` <= 1, "
                f"got {self.mask_temperature} and {self.token_share}."
            )
        require_whole_numbers(vars(self), {"num_candidates": CANDIDATES})
        if not self.stems or not all(self.stems) or len(set(self.stems)) != len(self.stems):
            raise ValueError(f"`stems` must name at least one track, each once, got {self.stems}.")
        if len(self.codebook_loss_weights) != self.num_codebooks:
            raise ValueError(
                f"`codebook_loss_weights` must have one weight per codebook ({self.num_codebooks}), "
                f"got {len(self.codebook_loss_weights)}."
            )
        if self.track_embeddings and self.track_generation == "parallel":
            raise ValueError(
                "`track_embeddings` needs `track_generation='sequential'`: parallel tracks share positions."
            )


def _require_kind(config: dict | PreTrainedConfig | None, name: str, kind: type[PreTrainedConfig]):
    received = _as_dict(config).get("model_type", kind.model_type)
    if received != kind.model_type:
        raise ValueError(f"`{name}` must be a {kind.__name__} (`model_type` {kind.model_type!r}), got {received!r}.")


__all__ = ["MssConfig", "MssEncoderConfig"]
