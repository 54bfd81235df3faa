"""Stage `separator`: the language model learns to write the codes of a frozen codec (section 3.2 of the paper)."""

import copy
import dataclasses
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from data_mss.scores import si_sdr
from modeling_mss import HCodecModel, MssConfig, MssForConditionalGeneration
from processing_mss import AudioSourceSeparationPipeline, MssFeatureExtractor, MssProcessor, mel_power_spectrogram
from processing_mss.filtering_mss import fft_size, istft, power, ratio_masks, stft

from .codec_losses import filter_mixture
from .configuration import StageConfig, TrainingConfig
from .run_state import load_learned_weights
from .stage import Stage, StepLoss, samples_of, scores_by_stem, unwrapped
from .throughput import training_flops

SEPARATOR = "separator"
FROZEN_CODEC = "codec."
ENCODER = "encoder"
NUM_SAMPLES = 8  # decodings whose power is averaged in validation
OBJECTIVE = ("label_smoothing", "codebook_loss_weights", "mask_loss_weight")  # fields of a model, not its architecture
TABLES_OF_STEMS = {"track_embedding.weight", "encoder.mask_head.out.weight", "encoder.mask_head.out.bias"}


class SeparatorStage(Stage):
    """Mixtures in, codes of their stems out.

    The codec tokenises stems on line, after augmentation, unless the batch brings codes. It is shared between the
    tokeniser and the model's decoding half, never trained, and no part of the checkpoints.

    Args:
        codec_path: folder or Hub id of a whole codec, HuBERT included.
        stage_config: recipe, if it is not that of section `separator`; the architecture always is.
        init_from: folder or Hub id of a separator to go on from, whose architecture wins over the configuration's, and
            whose stems may differ from those asked for; or a checkpoint of a run, or `best/` of one of the stage masks:
            then the language model is new, as configured.

    Raises:
        ValueError: the codec cannot encode, `init_from` was trained over another codec, or an encoder is to be frozen
            that knows nothing, or not all of the stems.
    """

    frozen = (FROZEN_CODEC,)
    partly_known = True

    def __init__(
        self,
        training_config: TrainingConfig,
        codec_path: str,
        init_from: str | None = None,
        stage_config: StageConfig | None = None,
    ):
        super().__init__(training_config, stage_config or training_config.separator)
        # In float32 whatever is stored: updates of half-precision weights would be rounded away.
        self.tokenizer = HCodecModel.from_pretrained(codec_path, dtype=torch.float32).eval().requires_grad_(False)
        if not self.tokenizer.config.include_semantic_model:
            raise ValueError(
                f"The codec {codec_path} has no HuBERT inside and cannot encode. Train or convert a whole one."
            )
        model = self._from_separator(init_from) if init_from else self._new_separator()
        for name, part in model.codec.named_children():
            theirs, ours = getattr(self.tokenizer, name).state_dict(), part.state_dict()
            if init_from and any(not torch.equal(ours[key], theirs[key]) for key in ours):
                raise ValueError(f"The separator {init_from} was trained over another codec than {codec_path}.")
            setattr(model.codec, name, getattr(self.tokenizer, name))  # one copy in memory
        self.choose_what_learns(model, init_from)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.untrained = False
        model.config.outputs = model.config.possible_outputs
        model.config.num_candidates = training_config.separator.model.get("num_candidates", model.config.num_candidates)
        model.generation_config = GenerationConfig(**dataclasses.asdict(training_config.separator.generation))
        self.networks = {SEPARATOR: model}
        self.processor = _processor_of(model.config, self.config.crops.crop_s)

    def choose_what_learns(self, model: MssForConditionalGeneration, init_from: str | None) -> None:
        """Freeze the parameters that this stage leaves as they are."""
        if not self.training_config.separator.freeze_encoder:
            return
        if not init_from and model.config.conditional_encoder != "hubert":
            raise ValueError(
                "separator.freeze_encoder leaves the encoder as it is, and a new one knows nothing: train the stage "
                "masks first and give --init_from its best/, or pass --set separator.freeze_encoder=false."
            )
        model.encoder.requires_grad_(False)

    def _new_separator(self) -> MssForConditionalGeneration:
        config = self._configuration()
        model = MssForConditionalGeneration(config)
        if config.conditional_encoder == "hubert":  # A1 hears through the HuBERT that the codec has
            model.encoder.load_state_dict(self.tokenizer.semantic_model.state_dict())
        return self._with_codec(model)

    def _configuration(self) -> MssConfig:
        fields = copy.deepcopy(self.training_config.separator.model)
        if fields.get("conditional_encoder") == "hubert" and fields.get("encoder_config") is None:
            fields["encoder_config"] = self.tokenizer.config.semantic_model_config.to_dict()
        return MssConfig(**fields, stems=self.training_config.stems, codec_config=self.tokenizer.config)

    def _with_codec(self, model: MssForConditionalGeneration) -> MssForConditionalGeneration:
        half = model.codec.state_dict()
        model.codec.load_state_dict(
            {name: value for name, value in self.tokenizer.state_dict().items() if name in half}
        )
        return model

    def _from_separator(self, init_from: str) -> MssForConditionalGeneration:
        """A trained separator, for the stems of this configuration."""
        weights = Path(init_from) / f"{SEPARATOR}.safetensors"
        if weights.is_file():  # a checkpoint: learned weights only
            model = self._with_codec(MssForConditionalGeneration(self._configuration()))
            others = tuple(f"{name}." for name, _ in model.named_children() if name != ENCODER)
            load_learned_weights(model, weights, others if of_masks(weights) else (FROZEN_CODEC,))
            return model
        asked = self.training_config.separator.model
        objective = {name: asked[name] for name in OBJECTIVE if name in asked}
        config = MssConfig(**MssConfig.from_pretrained(init_from).to_dict() | objective)
        trained = MssForConditionalGeneration.from_pretrained(init_from, config=config, dtype=torch.float32)
        stems = self.training_config.stems
        if list(trained.config.stems) == stems:
            return trained
        if trained.config.track_generation == "parallel":
            raise ValueError(
                f"{init_from} generates {trained.config.stems} in parallel, through tables and heads of their own: it "
                f"cannot go on with {stems}. Start from a sequential separator."
            )
        known = list(trained.config.stems)
        if trained.config.mask_head and self.training_config.separator.freeze_encoder and set(stems) - set(known):
            raise ValueError(
                f"{init_from} has masks of {known}, not of {sorted(set(stems) - set(known))}: pass --set "
                "separator.freeze_encoder=false, so that those are learned."
            )
        config = MssConfig(**{**trained.config.to_dict(), "stems": stems})
        model = MssForConditionalGeneration(config)
        state, fresh = trained.state_dict(), model.state_dict()
        for name in TABLES_OF_STEMS & state.keys():
            state[name] = rows_of_stems(state[name], known, fresh[name], stems)
        model.load_state_dict(state)
        return model

    def to(self, device: torch.device) -> None:
        self.tokenizer.to(device)

    @property
    def model(self) -> MssForConditionalGeneration:
        """The network in its plain form."""
        return unwrapped(self.networks[SEPARATOR])

    @torch.no_grad()
    def tokenise(self, stems: torch.Tensor) -> torch.Tensor:
        """Waveforms `(B, S, T)` -> codes `(B, S, 2 F, Q)`."""
        return self.tokenizer.encode(stems.flatten(0, 1)).audio_codes.unflatten(0, stems.shape[:2])

    def features(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the model hears of the mixture."""
        windows = batch["mixture"][:, None]
        return {**self.processor.feature_extractor(windows, sampling_rate=self.processor.sampling_rate)}

    def stem_powers(self, batch: dict) -> torch.Tensor:
        """What masks are trained by, `(B, S, L, M)`.

        Where a teacher's masks have cut the stems out of their mixture, magnitudes have the ratio of these masks;
        powers would have that of their squares, and be too sure.
        """
        powers = mel_power_spectrogram(batch["stems"], num_mel_bins=self.model.config.encoder_config.num_mel_bins)
        magnitudes = powers.sqrt()
        total = powers.sum(dim=1, keepdim=True)
        softer = magnitudes * (total / magnitudes.sum(dim=1, keepdim=True).clamp(min=1e-10))
        return torch.where(batch["estimated"][:, None, None, None], softer, powers)

    def model_inputs(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the model's `forward` reads: features of the mixture, the codes of the stems, and which are known."""
        codes = batch["audio_codes"] if "audio_codes" in batch else self.tokenise(batch["stems"])
        return {**self.features(batch), "audio_codes": codes, "known_stems": batch.get("known")}

    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        inputs = self.model_inputs(batch)
        if self.model.config.mask_head and not self.training_config.separator.freeze_encoder:
            inputs["stem_powers"] = self.stem_powers(batch)
        output = self.networks[SEPARATOR](**inputs, return_logits=False)
        metrics = {
            "loss": output.loss.detach(),
            "codebook_losses": output.codebook_losses,
            "codebook_accuracies": output.codebook_accuracies,
        }
        if output.mask_loss is not None:
            metrics["mask_loss"] = output.mask_loss.detach()
        yield StepLoss(SEPARATOR, output.loss, metrics)

    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss and accuracies, by stem, each the mean over the batch; `ends_by_itself` is the share of codebooks that
        say E where a track ends."""
        output = self.model(**self.model_inputs(batch), return_logits=False)
        ones = torch.ones(len(batch["mixture"]), device=output.loss.device)
        scores = {"loss": output.loss * ones}
        for stem, losses, accuracies, ends in zip(
            self.model.config.stems, output.codebook_losses, output.codebook_accuracies, output.end_accuracies
        ):
            scores[f"loss_first_layer/{stem}"] = losses[0] * ones
            scores[f"accuracy_first_layer/{stem}"] = accuracies[0] * ones
            scores[f"accuracy/{stem}"] = accuracies.mean() * ones
            scores[f"ends_by_itself/{stem}"] = ends * ones
        return scores

    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Greedy decoding, as the codec plays it (`generated`) and as a filter over the mixture (`filtered`); the
        filter of what the model expects (`expected`), and of the true codes: what a perfect language model would reach.
        """
        inputs = self.model_inputs(batch)
        references, mixture = batch["stems"], batch["mixture"]
        true_codes = inputs.pop("audio_codes")
        del inputs["known_stems"]
        generated = self.model.decode_codes(self.model.generate(**inputs, do_sample=False))
        estimates = {
            "mixture": mixture[:, None].expand_as(references),
            "generated": generated,
            "filtered": filter_mixture(generated, mixture),
            "expected": self._filter_by_expectation(inputs, mixture),
            "true_codes": filter_mixture(self.model.decode_codes(true_codes), mixture),
        }
        scores = {}
        for name, estimate in estimates.items():
            scores |= scores_by_stem(f"si_sdr_{name}", si_sdr(estimate, references), self.model.config.stems)
        heard = {"reference": references, "generated": generated, "expected": estimates["expected"]}
        return scores, samples_of(self.model.config.stems, mixture, **heard)

    def _filter_by_expectation(self, inputs: dict[str, torch.Tensor], mixture: torch.Tensor) -> torch.Tensor:
        """Stems cut out of mixtures `(B, T)` by the mean power of several sampled decodings, `(B, S, T)`.

        A Wiener filter wants the power that is expected, and a model that has learned little chooses silence too often
        when greedy.
        """
        sampling = {"do_sample": True, "top_p": 0.9, "num_return_sequences": NUM_SAMPLES, "seed": 0}
        output = self.model.generate(**inputs, **sampling, output_latents=True)
        latents = output.acoustic_latents.flatten(0, 1), output.semantic_latents.flatten(0, 1)
        samples = self.model.codec.decode_latents(*latents).audio_values.unflatten(0, (len(mixture), NUM_SAMPLES, -1))
        n_fft = fft_size(self.processor.sampling_rate)
        masks = ratio_masks(power(stft(samples, n_fft)).mean(dim=1))
        return istft(masks * stft(mixture, n_fft)[:, None], mixture.shape[-1])

    @property
    def code_frames(self) -> int:
        """F, code frames of a crop."""
        return round(self.config.crops.crop_s * self.processor.sampling_rate / self.processor.code_hop_length)

    @property
    def tokens_per_crop(self) -> int:
        config = self.model.config
        prefix = self.code_frames * config.prefix_frames_per_code_frame // config.prefix_stride
        num_segments = len(config.stems) // config.tracks_per_position
        return 1 + prefix + num_segments * (2 * self.code_frames + 1)

    @cached_property
    def flops_per_crop(self) -> float:
        crop = torch.zeros(1, self.code_frames * self.processor.code_hop_length, device=self.model.device)
        config = self.model.config
        codes = crop.new_zeros(1, len(config.stems), 2 * self.code_frames, config.num_codebooks, dtype=torch.long)
        return training_flops(self.model, self.model_inputs({"mixture": crop, "audio_codes": codes}))

    def describe(self, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        """One number per stem and layer."""
        described = {name: metrics[name].item() for name in ("loss", "mask_loss") if name in metrics}
        for kind, name in (("loss", "codebook_losses"), ("accuracy", "codebook_accuracies")):
            table = metrics.get(name, torch.empty(0))  # not of masks alone
            for stem, row in zip(self.model.config.stems, table.tolist()):
                described |= {f"{kind}/{stem}/{layer:02d}": value for layer, value in enumerate(row)}
        return described

    def export(self, directory: str | os.PathLike) -> None:
        """The whole repository: both halves of the model, processor, pipeline, and their code."""
        AudioSourceSeparationPipeline(model=self.model, processor=self.processor).save_pretrained(directory)


def rows_of_stems(rows: torch.Tensor, known: list[str], fresh: torch.Tensor, stems: list[str]) -> torch.Tensor:
    """A table with as many rows for each stem, for other stems: those of the same name keep theirs.

    Args:
        rows: `(S * n, ...)`, of the stems `known`.
        fresh: `(S' * n, ...)`, what new ones of `stems` start from.

    Returns:
        As `fresh`.
    """
    before, after = rows.unflatten(0, (len(known), -1)), fresh.unflatten(0, (len(stems), -1))
    return torch.cat([before[known.index(stem)] if stem in known else after[i] for i, stem in enumerate(stems)])


def of_masks(weights: Path) -> bool:
    """Whether a file holds what the stage masks learns: an encoder and nothing else."""
    with safe_open(weights, framework="pt") as file:
        return all(name.startswith(f"{ENCODER}.") for name in file.keys())


def _processor_of(config: MssConfig, window_s: float) -> MssProcessor:
    """The processor of a separator, which hears windows as long as its training crops."""
    if config.conditional_encoder == "hubert":
        extractor = MssFeatureExtractor(features="waveform")
    else:
        extractor = MssFeatureExtractor(feature_size=config.encoder_config.num_mel_bins)
    hop_length = config.codec_config.hop_length
    return MssProcessor(extractor, stems=config.stems, window_s=window_s, code_hop_length=hop_length)
