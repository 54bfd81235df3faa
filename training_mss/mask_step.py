"""Stage `masks`: the conditional encoder learns which share of the mixture each stem has, before the language model
learns to write codes."""

from collections.abc import Iterator

import torch

from data_mss.scores import usdr
from modeling_mss import MssForConditionalGeneration
from processing_mss.filtering_mss import istft, masks_at_bins, masks_at_frames, stft

from .configuration import TrainingConfig
from .separator_step import ENCODER, SEPARATOR, SeparatorStage
from .stage import StepLoss, samples_of, scores_by_stem

N_FFT = 2048  # of the score, at 48 kHz
AUDIBLE_SHARE = 0.05  # of the mixture's energy: stems 13 dB below it are not scored in a crop of a few seconds


class MaskStage(SeparatorStage):
    """Mixtures in, masks on their mel bands out.

    The model is the one of section `separator`, which must have a `mask_head`; all but its encoder stays as it was.
    What is exported separates by masks alone, and is what `--stage separator --init_from` goes on from.

    Args:
        codec_path, init_from: see `SeparatorStage`.

    Raises:
        ValueError: as there; or the model has no mask head.
    """

    score = "usdr"
    tokens_per_crop = None
    flops_per_crop = None

    def __init__(self, training_config: TrainingConfig, codec_path: str, init_from: str | None = None):
        super().__init__(training_config, codec_path, init_from, training_config.masks)
        if not self.model.config.mask_head:
            raise ValueError("The stage masks needs separator.model.mask_head: true in the configuration.")
        self.model.config.outputs = ["masked"]
        self.frozen = tuple(f"{name}." for name, _ in self.model.named_children() if name != ENCODER)

    def choose_what_learns(self, model: MssForConditionalGeneration, init_from: str | None) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(f"{ENCODER}."))

    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        output = self.networks[SEPARATOR](**self.mask_inputs(batch), return_logits=False)
        yield StepLoss(SEPARATOR, output.mask_loss, {"loss": output.mask_loss.detach()})

    def mask_inputs(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the model's `forward` reads."""
        return {**self.features(batch), "stem_powers": self.stem_powers(batch), "known_stems": batch["known"]}

    def separate(self, masks: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        """Masks `(B, S, L, M)` on mixtures `(B, T)` -> stems `(B, S, T)`."""
        spectrum = stft(mixture, N_FFT)
        rate, hop = self.processor.sampling_rate, self.processor.feature_extractor.hop_length
        centres = torch.arange(spectrum.shape[-1], device=mixture.device) * (N_FFT // 4)
        masks = masks_at_bins(masks_at_frames(masks, centres / hop - 0.5), rate, N_FFT, rate)
        return istft(masks * spectrum[:, None], mixture.shape[-1])

    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """The loss, and `usdr` in dB of stems that are audible in the crop, of all together and of each."""
        inputs = self.mask_inputs(batch)
        output = self.model(**inputs)
        references, mixture = batch["stems"], batch["mixture"]
        ratios = usdr(self.separate(output.masks, mixture), references)
        energy = references.square().mean(dim=-1)
        audible = energy > AUDIBLE_SHARE * mixture.square().mean(dim=-1, keepdim=True)
        ratios = torch.where(audible, ratios, torch.nan)
        scores = {"loss": output.mask_loss * torch.ones(len(mixture), device=mixture.device)}
        return scores | scores_by_stem("usdr", ratios, self.model.config.stems)

    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Samples alone: `validate` has scored all crops already."""
        masks = self.model.masks(self.features(batch)["input_features"][:1])
        masked = self.separate(masks, batch["mixture"][:1])
        return {}, samples_of(self.model.config.stems, batch["mixture"], reference=batch["stems"], masked=masked)
