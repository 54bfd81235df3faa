"""What a YAML file of `configs/` may say: recipe and architecture of the stages, as typed fields.

A file may name another one as its `base` and then states only what differs:

    base: paper.yaml
    separator:
      model: {conditional_encoder: hubert, encoder_config: null}

Mappings are merged, everything else (lists, numbers, null) replaces what the base says.
"""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data_mss.augmentation import RMS_RANGE, AugmentationConfig
from data_mss.manifest import STEMS, require


@dataclass
class CropConfig(AugmentationConfig):
    """Which crops a stage sees, and what is done to them: see `AugmentationConfig` too.

    A bank has the changes of single stems only: it mixes codes, whose levels are fixed.

    Args:
        crop_s: length in seconds.
        batch_size: crops of a process and micro-step; a crop holds all stems.
        input: "files" (worker processes read pieces of files), "device" (the whole corpus lies in the accelerator's
            memory as int16 and is cropped there) or "bank" (separator only: as "device", and crops are tokenised once,
            kept, remixed freely and replaced slowly).
        remix_probability: share of crops whose stems come from different songs.
        audible_probability, max_semitones, source_weights, min_confidence: see `StemDataset`.
        rms_range: level of the mixture, log-uniform; stems are scaled along. Windows of a song that is heard at one
            level lie in it, quiet ones too: see `RMS_RANGE`.
        bank_size: entries of the bank. bank_refresh: entries replaced in a step.
    """

    crop_s: float = 4.0
    batch_size: int = 24
    input: str = "files"
    remix_probability: float = 0.0
    audible_probability: float = 0.0
    max_semitones: float = 0.0
    source_weights: dict[str, float] | None = None
    min_confidence: float | None = None
    rms_range: tuple[float, float] = RMS_RANGE
    bank_size: int = 4096
    bank_refresh: int = 8

    def __post_init__(self):
        super().__post_init__()
        require(self.input in ("files", "device", "bank"), "input", "'files', 'device' or 'bank'", self.input)
        require(self.crop_s > 0, "crop_s", "positive", self.crop_s)
        require(self.batch_size > 0, "batch_size", "at least 1", self.batch_size)
        require(0 < self.rms_range[0] <= self.rms_range[1], "rms_range", "0 < low <= high", self.rms_range)
        remixed = self.input != "bank" and self.remix_probability > 0
        where = "where crops are not remixed, or in a bank, which remixes codes"
        require(remixed or not self.audible_probability, "audible_probability", f"0 {where}", self.audible_probability)
        none = f"null {where}: set remix_probability or input"
        require(remixed or self.stem_level_db is None, "stem_level_db", none, self.stem_level_db)
        for name in ("bus_probability", "lossy_probability"):
            allowed = "0 in a bank, which mixes codes of single stems: use input 'device'"
            require(self.input != "bank" or not getattr(self, name), name, allowed, getattr(self, name))


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up, then exponential decay per step down to a floor, or by the clock.

    Args:
        learning_rate: after warm-up; at step t it is this times max(decay ** (t - warmup_steps), floor).
        final_share: what is left of the learning rate when --max_train_minutes are over, however many steps that were:
            it is learning_rate * final_share ** (share of the minutes that has passed), and `decay` and `floor` do not
            count; null: they do.
        max_grad_norm: gradients are clipped to this norm.
    """

    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 2000
    decay: float = 0.99998
    floor: float = 0.02
    final_share: float | None = None
    max_grad_norm: float = 5.0

    def __post_init__(self):
        share = self.final_share
        require(share is None or 0 < share <= 1, "final_share", "above 0 and at most 1, or null", share)


@dataclass
class StageConfig:
    """What all stages share.

    Args:
        model: fields of the stage's model configuration (HubertConfig, HCodecConfig, MssConfig).
        max_steps: updates of the weights.
        gradient_accumulation_steps: micro-steps of an update.
        mixed_precision: "no" or "bf16".
        gradient_checkpointing: compute activations twice instead of keeping them.
        ema_decay: of the moving average of the weights, which is then validated and exported; null: none.
        max_skipped_steps: so many updates in a row with a loss or gradient that is not finite end the run.
        validation_crops: crops of the validation split that are scored; generated_crops: of these, how many are
            also decoded to audio and scored by `si_sdr`.
    """

    model: dict = field(default_factory=dict)
    crops: CropConfig = field(default_factory=CropConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int = 100_000
    gradient_accumulation_steps: int = 1
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    ema_decay: float | None = None
    max_skipped_steps: int = 20
    validation_crops: int = 64
    generated_crops: int = 4

    def __post_init__(self):
        require(self.mixed_precision in ("no", "bf16"), "mixed_precision", "'no' or 'bf16'", self.mixed_precision)
        require(self.max_steps > 0, "max_steps", "at least 1", self.max_steps)


@dataclass
class HubertStageConfig(StageConfig):
    """Masked prediction of k-means units (HuBERT, arXiv 2106.07447), at 16 kHz, on stems and mixtures.

    Args:
        num_mel_units: clusters of log-mel frames, the targets of the first steps.
        relabel_step: from this step on, the targets are clusters of the features that the model has learned so far.
        num_feature_units, feature_layer: number of those clusters, and the hidden layer they are made from.
        mask_probability, mask_length: share of frames that start a masked span, and frames of a span.
    """

    num_mel_units: int = 100
    relabel_step: int = 100_000
    num_feature_units: int = 500
    feature_layer: int = 6
    mask_probability: float = 0.08
    mask_length: int = 10


@dataclass
class CodecLossConfig:
    """Weights of the generator's losses; their names are those in the logs. 0 switches a loss off.

    Args:
        mel: L1 of log-mel spectrograms at several resolutions.
        stft: L1 of log-magnitudes plus spectral convergence at several resolutions.
        waveform: L1 of samples.
        semantic: mean squared error of the reconstructed semantic features.
        ratio_mask: error of the stems filtered out of their mixture by the ratio mask of the decoded stems, in dB.
        adversarial, feature_matching: see `DiscriminatorConfig`.
    """

    mel: float = 15.0
    stft: float = 1.0
    waveform: float = 1.0
    commitment: float = 1.0
    semantic: float = 1.0
    ratio_mask: float = 0.0
    adversarial: float = 1.0
    feature_matching: float = 2.0


@dataclass
class DiscriminatorConfig:
    """Multi-period and multi-scale STFT discriminators, hinge loss.

    Args:
        start_step: the generator learns without them before; null switches them off.
        periods: of the multi-period discriminators, in samples.
        fft_sizes: of the STFT discriminators.
        channels: width of the first layers.
    """

    start_step: int | None = 50_000
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    channels: int = 32
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class CodecStageConfig(StageConfig):
    """The codec, on single stems.

    Args:
        quantizer_dropout: share of clips that are decoded from a random number of layers only, so that fewer layers
            still decode well.
        fft_sizes: resolutions of the mel and stft losses, in samples.
    """

    losses: CodecLossConfig = field(default_factory=CodecLossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    quantizer_dropout: float = 0.0
    fft_sizes: tuple[int, ...] = (4096, 2048, 1024, 512, 256)


@dataclass
class GenerationDefaults:
    """How the exported separator decodes unless it is told otherwise; fields of transformers' GenerationConfig.

    Args:
        do_sample: sample codes instead of taking the most likely ones; temperature, top_k and top_p limit the samples.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not self.do_sample and (self.temperature, self.top_k, self.top_p) != (None, None, None):
            raise ValueError(f"Greedy decoding has no temperature, top_k and top_p, got {self}: set do_sample to true.")


@dataclass
class MaskStageConfig(StageConfig):
    """Masks of the conditional encoder that section `separator` describes, alone; `model` stays empty."""

    def __post_init__(self):
        super().__post_init__()
        require(not self.model, "masks.model", "empty: the encoder is that of separator.model", self.model)
        allowed = "'files' or 'device': a bank keeps codes, which masks do not learn from"
        require(self.crops.input != "bank", "masks.crops.input", allowed, self.crops.input)


@dataclass
class SeparatorStageConfig(StageConfig):
    """The language model over the frozen codec's codes.

    Args:
        freeze_encoder: leave the conditional encoder as the stage masks has made it.
    """

    freeze_encoder: bool = False

    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


@dataclass
class PeerModelConfig:
    """Which network the stage `peer` trains, and how large it is.

    Args:
        architecture: "bs_roformer" or "htdemucs".
        bs_roformer: arguments of the class `BSRoformer` of the package BS-RoFormer, as in the `model` section of the
            YAML files beside published checkpoints; `dim` and `depth` are needed.
        htdemucs: arguments of the class `HTDemucs` of the package demucs.
    """

    architecture: str = "bs_roformer"
    bs_roformer: dict = field(default_factory=dict)
    htdemucs: dict = field(default_factory=dict)

    def __post_init__(self):
        allowed = ("bs_roformer", "htdemucs")
        require(self.architecture in allowed, "architecture", "'bs_roformer' or 'htdemucs'", self.architecture)


@dataclass
class PeerStageConfig(StageConfig):
    """A discriminative separator on the same crops; both networks may be described, `architecture` chooses."""

    model: PeerModelConfig = field(default_factory=PeerModelConfig)


@dataclass
class TrainingConfig:
    """A whole file: the stems, in the order in which they are generated, and a section per stage."""

    stems: list[str] = field(default_factory=lambda: list(STEMS))
    hubert: HubertStageConfig = field(default_factory=HubertStageConfig)
    codec: CodecStageConfig = field(default_factory=CodecStageConfig)
    masks: MaskStageConfig = field(default_factory=MaskStageConfig)
    separator: SeparatorStageConfig = field(default_factory=SeparatorStageConfig)
    peer: PeerStageConfig = field(default_factory=PeerStageConfig)

    def to_dict(self) -> dict:
        """Plain lists and numbers, as YAML and trackers take them."""
        return dataclasses.asdict(self)


def load_config(path: str | os.PathLike, overrides: list[str] | None = None) -> TrainingConfig:
    """Read a YAML file and what it is based on.

    Args:
        overrides: "separator.optimizer.learning_rate=1e-3" and the like; values are YAML.

    Raises:
        ValueError: no such file, a field that does not exist, or a value of the wrong kind.
    """
    values = read_with_bases(Path(path))
    for override in overrides or []:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"Expected NAME=VALUE, as in separator.max_steps=100, got {override!r}.")
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value in --set {override!r} is no YAML: {error}") from error
        for key in reversed(name.strip().split(".")):
            value = {key: value}
        values = _merge(values, value)
    return build(TrainingConfig, values)


def read_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """A YAML file over its `base`, if it names one.

    Raises:
        ValueError: no such file, no YAML, no mapping, or a circle of bases.
    """
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path} is its own base.")
    if not path.is_file():
        raise ValueError(f"There is no configuration {path}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of sections, got a {type(values).__name__}.")
    base = values.pop("base", None)
    return _merge(read_with_bases(path.parent / base, (*seen, path)), values) if base else values


def _merge(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


# Not OmegaConf or draccus: training runs where torch, transformers, accelerate and PyYAML are all there is.
def build(kind: type, values: dict, place: str = ""):
    """A dataclass from a mapping; `place` is where it stands, for errors.

    Raises:
        ValueError: a field that does not exist or is missing, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise ValueError(f"`{place}` must be a mapping of fields, got {values!r}.")
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(f"Unknown {sorted(unknown)} in {place or 'the configuration'}; allowed are {sorted(hints)}.")
    needed = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{place or 'The configuration'} lacks {missing}, which have no defaults.")
    return kind(**{name: _value(hints[name], value, f"{place}.{name}".strip(".")) for name, value in values.items()})


def _value(hint, value, place: str):
    """`value` as the type `hint`, with the conversions YAML needs (1e-3 is a string there, tuples are lists)."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value or {}, place)
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = options[0]
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is dict and isinstance(value, dict):
        return (
            {key: _value(arguments[1], item, f"{place}.{key}") for key, item in value.items()} if arguments else value
        )
    try:
        if origin is tuple and isinstance(value, (list, tuple)):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_value(kind, item, place) for kind, item in zip(kinds, value))
        elif origin is list and isinstance(value, list):
            return [_value(arguments[0], item, place) for item in value]
        elif origin is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
        elif origin is str and value is False:
            return "no"  # as YAML 1.1 reads it
        elif origin in (int, str, bool) and type(value) is origin:
            return value
    except ValueError:
        pass  # the same message for "abc" as for a list
    raise ValueError(f"`{place}` must be of type {getattr(hint, '__name__', None) or hint}, got {value!r}.")
