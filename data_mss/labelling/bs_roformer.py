"""BS-RoFormer as a teacher: a user's checkpoint and its YAML, as Music-Source-Separation-Training (MSST) has them."""

import inspect
import re
from pathlib import Path

import torch
import yaml

from ..manifest import STEMS
from .chunks import separate_in_chunks, separate_with_channels

# Fields of MSST's YAML that the package lacks: those that do not change what a trained network computes, and those that
# the package computes in one way only.
NO_EFFECT = ("use_torch_checkpoint", "sage_attention")
ONLY_VALUE = {"linear_transformer_depth": 0, "skip_connection": False}
# Defaults in which the package (four residual streams, the mean kept) differs from MSST and its published networks.
PUBLISHED_DEFAULTS = {"num_residual_streams": 1, "zero_dc": True}
WRAPPERS = ("state", "state_dict", "model_state_dict")  # of weights in a checkpoint, the first one counts


class _TupleLoader(yaml.SafeLoader):
    """YAML without code, but with the tuples that MSST's files are written with."""


_TupleLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


class BSRoformerTeacher:
    """A BS-RoFormer of the package BS-RoFormer.

    A network with several stems has those of the YAML's `training: instruments`. One with a single stem gives that
    (`training: target_instrument`) and the song minus it, under the joined names of the other stems: of all, where the
    target is only a part of one, as guitars are.

    Args:
        checkpoint: weights (.ckpt), read with `weights_only=True`.
        config: YAML with sections `model`, `audio` and `training`, and maybe `inference`.
        batch_size: chunks at a time; the YAML's `inference: batch_size` if it is None.
    """

    name = "bs_roformer"
    settings: dict[str, str] = {}

    def __init__(self, checkpoint: str, config: str, device: torch.device | str = "cpu", batch_size: int | None = None):
        settings = read_msst_config(config)
        audio, inference = settings["audio"], settings.get("inference") or {}
        training = settings.get("training") or {}
        self.device = torch.device(device)
        self.model = build_bs_roformer(settings["model"])
        load_bs_roformer_weights(self.model, checkpoint)
        self.model.eval().to(self.device)

        self.sampling_rate = audio.get("sample_rate", 44100)
        self.batch_size = batch_size or inference.get("batch_size", 1)
        # The package's inverse STFT gives whole hops only.
        hop = settings["model"].get("stft_hop_length", 512)
        self.chunk = -(-(inference.get("chunk_size") or audio["chunk_size"]) // hop) * hop
        self.overlap = self.chunk - self.chunk // max(1, inference.get("num_overlap", 2))
        self.stems = self._stems(training)

    def _stems(self, training: dict) -> list[str]:
        if self.model.num_stems == 1:
            target = training.get("target_instrument") or "vocals"
            rest = [stem for stem in STEMS if stem != target.lower()]
            return [target, "+".join(rest)]
        stems = list(training.get("instruments") or [])
        if len(stems) != self.model.num_stems:
            raise ValueError(
                f"The YAML's `training: instruments` must name the network's {self.model.num_stems} stems, got {stems}."
            )
        return stems

    @torch.inference_mode()
    def separate(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        stems = separate_with_channels(self._separate, waveform, self.model.audio_channels)
        if self.model.num_stems == 1:
            stems = torch.cat((stems, waveform[None] - stems))
        return dict(zip(self.stems, stems))

    def _separate(self, waveform: torch.Tensor) -> torch.Tensor:
        def separate_chunks(chunks: torch.Tensor) -> torch.Tensor:
            return self.model(chunks).reshape(len(chunks), self.model.num_stems, *chunks.shape[1:])

        return separate_in_chunks(separate_chunks, waveform, self.chunk, self.overlap, self.batch_size, self.device)


def read_yaml_with_tuples(path: str):
    """What a YAML file says; `!!python/tuple` is understood, any other tag that would run code is refused.

    Raises:
        ValueError: no YAML, or such a tag.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_TupleLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML that can be read safely: {error}") from error


def read_msst_config(path: str) -> dict:
    """Sections of a YAML file beside a checkpoint of BS-RoFormer.

    Raises:
        ValueError: no YAML of this kind.
    """
    settings = read_yaml_with_tuples(path)
    if not isinstance(settings, dict) or not {"model", "audio"} <= settings.keys():
        raise ValueError(f"{path} needs sections `model` and `audio`, as the YAML files beside published checkpoints.")
    if "chunk_size" not in settings["audio"] and "chunk_size" not in (settings.get("inference") or {}):
        raise ValueError(f"{path} needs `chunk_size` (in samples) in its section `audio` or `inference`.")
    return settings


def build_bs_roformer(model_section: dict) -> torch.nn.Module:
    """The network of a YAML's `model` section.

    Where the YAML is silent, MSST's defaults hold and not the package's (see `PUBLISHED_DEFAULTS`).

    Raises:
        ValueError: a setting that the package does not know, or cannot compute.
        ImportError: the package is missing.
    """
    try:
        from bs_roformer.bs_roformer import BSRoformer, MaskEstimator
    except ImportError as error:
        raise ImportError(
            f"The teacher 'bs_roformer' needs the package BS-RoFormer: pip install BS-RoFormer ({error}). The package "
            "bs-roformer-infer installs another module under the same name; they cannot stay side by side."
        ) from error

    settings = {**PUBLISHED_DEFAULTS, **model_section}
    for name in NO_EFFECT:
        settings.pop(name, None)
    for name, value in ONLY_VALUE.items():
        if settings.pop(name, value) != value:
            raise ValueError(f"`model: {name}` must be {value}: the package BS-RoFormer has nothing else.")
    expansion = settings.pop("mlp_expansion_factor", 4)
    unknown = sorted(settings.keys() - inspect.signature(BSRoformer.__init__).parameters.keys())
    if unknown:
        raise ValueError(
            f"The YAML's section `model` has {unknown}, which BS-RoFormer does not know. Is it another network's (such "
            "as Mel-Band RoFormer)? Use the teacher 'command' with a program that runs it."
        )
    # The package insists on tuples; hand-written YAML has lists.
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    model = BSRoformer(**settings)
    if expansion != 4:  # the package's constructor does not pass it on
        depth = settings.get("mask_estimator_depth", 2)
        bands = model.band_split.dim_inputs
        model.mask_estimators = torch.nn.ModuleList(
            MaskEstimator(settings["dim"], bands, depth, mlp_expansion_factor=expansion) for _ in range(model.num_stems)
        )
    return model


def load_bs_roformer_weights(model: torch.nn.Module, checkpoint: str):
    """Put a checkpoint's weights into the package's network, published ones (MSST) too.

    Those come from before the package had residual streams and value residuals: names lack `.branch`, and networks lack
    `to_value_residual_mix`. Without both, the package computes exactly the published network.

    Raises:
        ValueError: the file cannot be read safely, or it does not fit the network.
    """
    state = read_weights(checkpoint)
    names = model.state_dict().keys()
    state = {_package_name(name, names): value for name, value in state.items()}
    if not any("to_value_residual_mix" in name for name in state):
        for module in model.modules():
            if hasattr(module, "to_value_residual_mix"):
                module.to_value_residual_mix = None
    fit_weights(model, state, checkpoint)


def read_weights(checkpoint: str, wrappers: tuple[str, ...] = WRAPPERS) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by name, out of what trainings wrap them in.

    Raises:
        ValueError: the file cannot be read safely, or holds no weights.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # of the file system, of pickle, of zip
        raise ValueError(f"Cannot read the checkpoint {checkpoint} as weights alone: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"The checkpoint {checkpoint} holds a {type(state).__name__}, not the weights of a network.")
    while wrapper := next((name for name in wrappers if isinstance(state.get(name), dict)), None):
        state = state[wrapper]
    return state


def fit_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], checkpoint: str):
    """Put weights into a network; raises ValueError if they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint {checkpoint} does not fit its YAML: {str(error)[:1000]}") from error


def _package_name(name: str, known: set[str]) -> str:
    if name in known:
        return name
    return re.sub(r"^(layers\.\d+\.\d+\.layers\.\d+\.\d+)\.", r"\1.branch.", name)
