"""Stage `codec`: a neural codec of single stems, with or without adversaries (section 3.1 of the paper)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import HubertModel

from data_mss.scores import si_sdr, usdr
from modeling_mss import HCodecConfig, HCodecModel
from modeling_mss.convert_hcodec import save_feature_extractor

from .codebooks import CodebookTraining
from .codec_losses import filter_mixture, ratio_mask_loss, spectral_losses
from .configuration import OptimizerConfig, TrainingConfig
from .discriminators import CodecDiscriminator, adversarial_loss, discriminator_loss, feature_matching_loss
from .stage import Stage, StepLoss, samples_of, unwrapped

CODEC, DISCRIMINATOR = "codec", "discriminator"
PATHS = ("acoustic", "semantic")
USAGE_DECAY = 0.99  # of the moving average of code counts: about the last hundred steps
USED_SHARE = 0.1  # an entry is in use with at least this part of what it had if all were used alike


class CodecStage(Stage):
    """Stems in, the same stems out; every stem of a crop is a clip of its own.

    Args:
        hubert_path: folder or Hub id of the HuBERT of the semantic path, frozen. Its configuration becomes
            `semantic_model_config`, its width `semantic_feature_size`.
        init_from: folder or Hub id of a whole codec to go on from, instead; its architecture and its HuBERT win over
            the configuration's.

    Raises:
        ValueError: not exactly one of the two is given, the codec is no whole one, or gradient checkpointing is asked
            for.
    """

    frozen = ("semantic_model.",)

    def __init__(self, training_config: TrainingConfig, hubert_path: str | None = None, init_from: str | None = None):
        super().__init__(training_config, training_config.codec)
        if self.config.gradient_checkpointing:
            raise ValueError("The codec has no `gradient_checkpointing`: set codec.gradient_checkpointing to false.")
        if init_from and hubert_path:
            raise ValueError(f"The codec {init_from} brings its own HuBERT: leave --hubert {hubert_path} out.")
        codec = _trained_codec(init_from) if init_from else _new_codec(self.config.model, hubert_path)
        for quantizer in (codec.acoustic_quantizer, codec.semantic_quantizer):
            CodebookTraining(quantizer, codec.config)
        if not self.config.losses.semantic:
            codec.semantic_decoder.requires_grad_(False)  # nothing else trains it; distributed training would wait
        self.networks: dict[str, nn.Module] = {CODEC: codec}
        if self._is_adversarial():
            self.networks = {DISCRIMINATOR: CodecDiscriminator(self.config.discriminator), CODEC: codec}
        self.code_counts: torch.Tensor | None = None  # (2, Q, codebook_size), moving average

    def _is_adversarial(self) -> bool:
        has_weight = self.config.losses.adversarial or self.config.losses.feature_matching
        return bool(has_weight) and self.config.discriminator.start_step is not None

    def optimizer_config(self, network: str) -> OptimizerConfig:
        return self.config.discriminator.optimizer if network == DISCRIMINATOR else self.config.optimizer

    @property
    def codec(self) -> HCodecModel:
        """The network in its plain form."""
        return unwrapped(self.networks[CODEC])

    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        clips = batch["stems"].flatten(0, 1)  # (N, T), N = B S
        output = self.networks[CODEC](clips, num_codebooks=self._draw_num_codebooks(clips))
        estimates = output.audio_values
        adversarial = self._is_adversarial() and step >= self.config.discriminator.start_step
        if adversarial:
            yield self._discriminator_loss(clips, estimates.detach())

        losses = self._reconstruction_losses(output, batch)
        if adversarial:
            losses |= self._adversarial_losses(clips, estimates)
        total = sum(getattr(self.config.losses, name) * loss for name, loss in losses.items())
        metrics = {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}}
        yield StepLoss(CODEC, total, metrics | self._codebook_metrics(output))

    def _draw_num_codebooks(self, clips: torch.Tensor) -> torch.Tensor | None:
        """Layers that each clip is decoded from, `(N,)`; None: all."""
        if not self.config.quantizer_dropout:
            return None
        num_layers = self.codec.config.num_codebooks
        fewer = torch.randint(1, num_layers + 1, (len(clips),), device=clips.device)
        dropped = torch.rand(len(clips), device=clips.device) < self.config.quantizer_dropout
        return torch.where(dropped, fewer, num_layers)

    def _reconstruction_losses(self, output, batch: dict) -> dict[str, torch.Tensor]:
        """Those with a weight, scalars."""
        weights, stems = self.config.losses, batch["stems"]
        estimates, clips = output.audio_values, stems.flatten(0, 1)
        losses = {}
        if weights.mel or weights.stft:
            rate = self.codec.config.sampling_rate
            wanted = bool(weights.mel), bool(weights.stft)
            spectral = spectral_losses(estimates, clips, rate, *wanted, self.config.fft_sizes)
            losses |= {name: loss.mean() for name, loss in spectral.items()}
        if weights.waveform:
            losses["waveform"] = functional.l1_loss(estimates, clips)
        if weights.commitment:
            losses["commitment"] = output.commitment_loss
        if weights.semantic:
            features = output.semantic_features
            losses["semantic"] = functional.mse_loss(output.reconstructed_semantic_features, features)
        if weights.ratio_mask:
            losses["ratio_mask"] = ratio_mask_loss(estimates.view_as(stems), stems, batch["mixture"])
        return losses

    def _discriminator_loss(self, clips: torch.Tensor, estimates: torch.Tensor) -> StepLoss:
        # One call for both: a distributed module must not run forward twice before it runs backward.
        maps = self.networks[DISCRIMINATOR](torch.cat((clips, estimates)))
        real, fake = ([[level.chunk(2)[half] for level in levels] for levels in maps] for half in (0, 1))
        loss = discriminator_loss(real, fake)
        scores = {
            f"score_{name}": torch.stack([levels[-1].detach().mean() for levels in side]).mean()
            for name, side in (("real", real), ("decoded", fake))
        }
        return StepLoss(DISCRIMINATOR, loss, {DISCRIMINATOR: loss.detach(), **scores})

    def _adversarial_losses(self, clips: torch.Tensor, estimates: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = self.config.losses
        # Unwrapped: this pass trains the codec only, and must not set off the exchange of discriminator gradients.
        with _without_gradients(unwrapped(self.networks[DISCRIMINATOR])) as discriminator:
            fake = discriminator(estimates)
            losses = {}
            if weights.adversarial:
                losses["adversarial"] = adversarial_loss(fake)
            if weights.feature_matching:
                losses["feature_matching"] = feature_matching_loss(discriminator(clips), fake)
        return losses

    @torch.no_grad()
    def _codebook_metrics(self, output) -> dict[str, torch.Tensor]:
        """Perplexity and share of entries in use, per path and layer, `(Q,)`, of the codes of about 100 steps."""
        codes = torch.stack((output.acoustic_codes, output.semantic_codes)).permute(0, 2, 1, 3).flatten(2)
        size = self.codec.config.codebook_size
        counts = torch.zeros((*codes.shape[:2], size), device=codes.device)
        counts.scatter_add_(-1, codes, torch.ones_like(codes, dtype=counts.dtype))
        if self.code_counts is None:
            self.code_counts = counts
        self.code_counts = self.code_counts.lerp(counts, 1 - USAGE_DECAY)
        shares = self.code_counts / self.code_counts.sum(dim=-1, keepdim=True)
        perplexity = torch.special.entr(shares).sum(dim=-1).exp()
        usage = (shares > USED_SHARE / size).float().mean(dim=-1)
        metrics = {f"{path}_perplexity": value for path, value in zip(PATHS, perplexity)}
        return metrics | {f"{path}_usage": value for path, value in zip(PATHS, usage)}

    def describe(self, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        """A number per loss; of codebooks the mean, and the perplexity of each layer."""
        described = {name: value.mean().item() for name, value in metrics.items()}
        for path in PATHS:
            values = metrics.get(f"{path}_perplexity", torch.empty(0)).tolist()
            described |= {f"{path}_perplexity/{layer:02d}": value for layer, value in enumerate(values)}
        return described

    @torch.no_grad()
    def _decode(self, stems: torch.Tensor) -> torch.Tensor:
        """Through the codec and back; `(B, S, T)` -> `(B, S, T)`. Codebooks learn in training mode only."""
        codec = self.codec
        was_training = codec.training
        codec.eval()
        estimates = codec(stems.flatten(0, 1)).audio_values.view_as(stems)
        codec.train(was_training)
        return estimates

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """`mel`, and mean `usdr` of audible stems: of what ratio masks of decoded stems cut out of the mixture, between
        its bounds, the mixture itself and the masks of the true stems."""
        stems, mixture = batch["stems"], batch["mixture"]
        decoded = self._decode(stems)
        rate = self.codec.config.sampling_rate
        mel = spectral_losses(decoded.flatten(0, 1), stems.flatten(0, 1), rate, stft=False)["mel"]
        estimates = {
            "ratio_mask": filter_mixture(decoded, mixture),
            "mixture": mixture[:, None].expand_as(stems),
            "ideal_mask": filter_mixture(stems, mixture),
        }
        scores = {f"usdr_{name}": usdr(estimate, stems).nanmean(dim=1) for name, estimate in estimates.items()}
        return {"mel": mel.view(stems.shape[:2]).mean(dim=1), **scores}

    @torch.no_grad()
    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Stems as the codec plays them (`generated`), and as a filter over the mixture (`filtered`)."""
        stems, mixture = batch["stems"], batch["mixture"]
        generated = self._decode(stems)
        estimates = {"generated": generated, "filtered": filter_mixture(generated, mixture)}
        scores = {f"si_sdr_{name}": si_sdr(estimate, stems).nanmean(dim=1) for name, estimate in estimates.items()}
        return scores, samples_of(self.training_config.stems, mixture, reference=stems, **estimates)

    def export(self, directory: str | os.PathLike) -> None:
        """The whole codec, its HuBERT included, and its feature extractor."""
        self.codec.save_pretrained(directory)
        save_feature_extractor(self.codec.config, directory)


def _new_codec(fields: dict, hubert_path: str | None) -> HCodecModel:
    """An untrained codec around a trained HuBERT."""
    if not hubert_path:
        raise ValueError(
            "The codec's semantic path hears through a trained HuBERT: pass --hubert, either bosonai/hubert_base (the "
            "published codec's) or the output of --stage hubert; or go on from a codec that has one."
        )
    hubert = HubertModel.from_pretrained(hubert_path, dtype=torch.float32)
    size = {"semantic_feature_size": hubert.config.hidden_size}
    codec = HCodecModel(HCodecConfig(**{**size, **fields, "semantic_model_config": hubert.config}))
    _require_whole(codec, "codec.model")
    codec.semantic_model.hubert.load_state_dict(hubert.state_dict())
    return codec.train()


def _trained_codec(path: str) -> HCodecModel:
    codec = HCodecModel.from_pretrained(path, dtype=torch.float32)
    _require_whole(codec, path)
    return codec.train()


def _require_whole(codec: HCodecModel, source: str) -> None:
    if codec.config.decoder_only or not codec.config.include_semantic_model:
        raise ValueError(
            f"Training needs a whole codec with its HuBERT inside, but {source} has decoder_only="
            f"{codec.config.decoder_only}, include_semantic_model={codec.config.include_semantic_model}. "
            "`python -m modeling_mss.convert_hcodec --hubert HUBERT` makes a whole one of the published."
        )


@contextmanager
def _without_gradients(module: nn.Module):
    """Inside the `with` no weight of `module` asks for a gradient; what is computed from its inputs has one."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
