"""Stage `hubert`: HuBERT learns music by masked prediction of k-means units (arXiv 2106.07447), at 16 kHz.

    stems (B, S, T) and mixture (B, T) at 48 kHz -> N = B (S + 1) clips at 16 kHz, L = T / 960 frames (50 a second)
    targets, first:               k-means of log-mel frames
    targets, from relabel_step:   k-means of hidden states of a frozen copy of what was learned so far (the teacher)

What the targets are made of is state of the network, so a checkpoint restores it. N processes do what one process does
with N times the batch: k-means, masks and the mean of the loss all range over all clips.
"""

import math
import os
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from transformers import HubertConfig, HubertModel

from modeling_mss.quantization_hcodec import nearest_rows
from modeling_mss.semantic_hcodec import decimate
from processing_mss.feature_extraction_mss import log_mel_spectrogram

from .codebooks import kmeans, process_rank_and_count, sum_over_processes
from .configuration import HubertStageConfig, TrainingConfig
from .stage import Stage, StepLoss, unwrapped

HUBERT = "hubert"
SAMPLING_RATE = 16000
DECIMATION = 3  # from 48 kHz
HOP_LENGTH = 320  # samples at 16 kHz
PADDING = 160  # zeros on both sides make T / 320 frames, as in `HubertFeatures`
MEL_FFT, MEL_BANDS = 1024, 40
# About 65 dB below white noise of the clip's level: silence inside a clip must not outweigh everything in the k-means.
MEL_FLOOR = math.log(1e-2)
SILENCE = 1e-4  # RMS of clips that teach nothing, -80 dBFS; mixtures have 0.003 to 0.3
KMEANS_ITERATIONS = 30
NO_TARGETS, MEL_TARGETS, FEATURE_TARGETS = range(3)


class HubertPretraining(nn.Module):
    """A HuBERT, a linear head over its last hidden state, and all that the targets are made of.

    One head serves both kinds of targets: it has rows for the larger number of units and starts again from zero when
    the targets change. So every parameter has a gradient in every step, and all processes start again alike.
    """

    def __init__(self, hubert_config: HubertConfig, config: HubertStageConfig):
        super().__init__()
        hidden_size = hubert_config.hidden_size
        teacher_config = HubertConfig(**{**hubert_config.to_dict(), "num_hidden_layers": config.feature_layer})
        self.hubert = HubertModel(hubert_config)
        self.head = nn.Linear(hidden_size, max(config.num_mel_units, config.num_feature_units))
        self.teacher = HubertModel(teacher_config).requires_grad_(False)
        self.teacher_dtype = torch.bfloat16 if config.mixed_precision == "bf16" else None
        self.register_buffer("mel_mean", torch.zeros(MEL_BANDS))
        self.register_buffer("mel_scale", torch.ones(MEL_BANDS))
        self.register_buffer("mel_centroids", torch.zeros(config.num_mel_units, MEL_BANDS))
        self.register_buffer("feature_centroids", torch.zeros(config.num_feature_units, hidden_size))
        self.register_buffer("saved_phase", torch.tensor(NO_TARGETS))
        self.known_phase: int | None = NO_TARGETS  # the same without asking the device; None after loading
        self.register_load_state_dict_post_hook(_forget_phase)
        self._start_head()
        self.train()

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()  # no dropout in the targets
        return self

    def forward(self, waveforms: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Logits `(N, L, units)` of clips `(N, T)` at 16 kHz whose frames in `masks` `(N, L)` bool are hidden.

        Only the first `num_units` of the last axis are in use.
        """
        hidden_states = self.hubert(_padded(waveforms), mask_time_indices=masks).last_hidden_state
        return self.head(hidden_states)

    @property
    def phase(self) -> int:
        """What the targets are: `NO_TARGETS`, `MEL_TARGETS` or `FEATURE_TARGETS`."""
        if self.known_phase is None:
            self.known_phase = int(self.saved_phase)
        return self.known_phase

    @property
    def num_units(self) -> int:
        """Number of different targets."""
        return len(self.mel_centroids if self.phase == MEL_TARGETS else self.feature_centroids)

    @torch.no_grad()
    def start_targets(self, phase: int, waveforms: torch.Tensor, audible: torch.Tensor) -> None:
        """Begin with targets of this kind, made from the clips that are audible; every process has to call this.

        Args:
            waveforms: `(N, T)` at 16 kHz. audible: `(N,)` bool.

        Raises:
            ValueError: no clip is audible, in any process.
        """
        if phase == MEL_TARGETS:
            frames = self._mel(waveforms)[audible].flatten(0, 1)
            count = sum_over_processes(frames.new_tensor(float(len(frames)))).clamp(min=1)
            self.mel_mean.copy_(sum_over_processes(frames.sum(dim=0)) / count)
            variance = sum_over_processes((frames - self.mel_mean).square().sum(dim=0)) / count
            self.mel_scale.copy_(variance.sqrt().clamp(min=1e-3))
            frames = (frames - self.mel_mean) / self.mel_scale
            self.mel_centroids.copy_(kmeans(frames, len(self.mel_centroids), KMEANS_ITERATIONS)[0])
        else:
            learned = self.hubert.state_dict()
            self.teacher.load_state_dict({name: learned[name] for name in self.teacher.state_dict()})
            frames = self._teacher_features(waveforms)[audible].flatten(0, 1)
            self.feature_centroids.copy_(kmeans(frames, len(self.feature_centroids), KMEANS_ITERATIONS)[0])
        self._start_head()
        self.saved_phase.fill_(phase)
        self.known_phase = phase

    @torch.no_grad()
    def units(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Targets `(N, L)` int64 of clips `(N, T)` at 16 kHz."""
        with torch.autocast(waveforms.device.type, enabled=False):  # distances need float32
            if self.phase == MEL_TARGETS:
                frames, centroids = (self._mel(waveforms) - self.mel_mean) / self.mel_scale, self.mel_centroids
            else:
                frames, centroids = self._teacher_features(waveforms), self.feature_centroids
            return nearest_rows(frames.flatten(0, 1), centroids).view(frames.shape[:2])

    def _start_head(self):
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Log-mel frames `(N, L, MEL_BANDS)` of clips at one level: HuBERT's first norm takes the level away too."""
        levelled = waveforms / _rms(waveforms).clamp(min=SILENCE)[:, None]
        return log_mel_spectrogram(levelled, SAMPLING_RATE, MEL_FFT, HOP_LENGTH, MEL_BANDS).clamp(min=MEL_FLOOR)

    def _teacher_features(self, waveforms: torch.Tensor) -> torch.Tensor:
        """`(N, L, hidden_size)` float32: the output of layer `feature_layer`, the teacher's last."""
        with torch.autocast(waveforms.device.type, self.teacher_dtype, enabled=self.teacher_dtype is not None):
            return self.teacher(_padded(waveforms), output_hidden_states=True).hidden_states[-1].float()


class HubertStage(Stage):
    """Pre-trains `HubertModel`; the codec's semantic path takes the result.

    Silent clips (a stem that rests) are heard but count neither for the loss nor for the targets. All other clips count
    alike, by frame.

    The configuration's `model` are fields of `HubertConfig`. Three of them are overruled: masks come from here, so
    `apply_spec_augment` is on and `mask_feature_prob` 0, and there is no `layerdrop`: with several processes, every
    weight needs a gradient in every step.

    Raises:
        ValueError: the model has not 320 samples a frame and T / 320 frames, or has no layer `feature_layer`.
    """

    config: HubertStageConfig

    def __init__(self, training_config: TrainingConfig):
        super().__init__(training_config, training_config.hubert)
        overruled = {"apply_spec_augment": True, "mask_feature_prob": 0.0, "layerdrop": 0.0}
        hubert_config = HubertConfig(**{**self.config.model, **overruled})
        num_frames = _num_frames(hubert_config, 10 * HOP_LENGTH + 2 * PADDING)
        if hubert_config.inputs_to_logits_ratio != HOP_LENGTH or num_frames != 10:
            raise ValueError(
                f"`conv_kernel` and `conv_stride` of the HuBERT must make one frame of {HOP_LENGTH} samples, as the "
                f"published ones do, got {list(hubert_config.conv_kernel)} and {list(hubert_config.conv_stride)}."
            )
        if hubert_config.mask_time_prob <= 0:
            raise ValueError("`mask_time_prob` must be positive: at 0 the HuBERT has no vector for hidden frames.")
        if not 1 <= self.config.feature_layer <= hubert_config.num_hidden_layers:
            raise ValueError(
                f"`feature_layer` must be 1 to {hubert_config.num_hidden_layers} (`num_hidden_layers`), got "
                f"{self.config.feature_layer}."
            )
        model = HubertPretraining(hubert_config, self.config)
        if self.config.gradient_checkpointing:
            model.hubert.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.networks = {HUBERT: model}

    @property
    def model(self) -> HubertPretraining:
        """The network in its plain form."""
        return unwrapped(self.networks[HUBERT])

    def prepare_step(self, batch: dict, step: int) -> None:
        """Make targets from the first batch, and new ones from the first batch at or after `relabel_step`."""
        phase = FEATURE_TARGETS if step >= self.config.relabel_step else MEL_TARGETS
        if self.model.phase < phase:
            waveforms = _clips(batch)
            self.model.start_targets(phase, waveforms, _rms(waveforms) > SILENCE)

    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        rank, num_processes = process_rank_and_count()
        waveforms = _clips(batch)
        # Drawn for the clips of all processes, of which each takes its own: independent of how many share the batch.
        masks = self._masks(waveforms, num_processes, seed=step)[rank * len(waveforms) :][: len(waveforms)]
        losses, hits, targets = self._predict(self.networks[HUBERT], waveforms, masks)
        audible = (_rms(waveforms) > SILENCE)[:, None]
        masked, unmasked = masks & audible, ~masks & audible
        # The mean over processes of sum / (count / processes) is the mean over all frames, also for gradients.
        counts = sum_over_processes(torch.stack((masked.sum(), unmasked.sum())).float()) / num_processes
        loss = (losses * masked).sum() / counts[0].clamp(min=1)
        metrics = {
            "loss": loss.detach(),
            "accuracy": (hits & masked).sum() / counts[0].clamp(min=1),
            "unmasked_accuracy": (hits & unmasked).sum() / counts[1].clamp(min=1),
            "perplexity": _perplexity(targets, audible, self.model.num_units),
        }
        yield StepLoss(HUBERT, loss, metrics)

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss and accuracy at the hidden frames of a crop's audible clips, always with the same masks."""
        num_crops, waveforms = len(batch["mixture"]), _clips(batch)
        if self.model.phase == NO_TARGETS:
            undefined = torch.full((num_crops,), torch.nan, device=waveforms.device)
            return {"loss": undefined, "accuracy": undefined}
        masks = self._masks(waveforms, 1, seed=0)
        losses, hits, _ = self._predict(self.model, waveforms, masks)
        masked = masks & (_rms(waveforms) > SILENCE)[:, None]

        def means(values):  # 0 / 0 where a crop is silent
            return (values * masked).view(num_crops, -1).sum(dim=1) / masked.view(num_crops, -1).sum(dim=1)

        return {"loss": means(losses), "accuracy": means(hits)}

    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """There is nothing to hear."""
        return {}, {}

    def export(self, directory: str | os.PathLike) -> None:
        """The HuBERT alone, for `HubertModel.from_pretrained`."""
        self.model.hubert.save_pretrained(directory)

    def _masks(self, waveforms: torch.Tensor, num_processes: int, seed: int) -> torch.Tensor:
        shape = (num_processes * len(waveforms), waveforms.shape[1] // HOP_LENGTH)
        masks = span_masks(*shape, self.config.mask_probability, self.config.mask_length, seed)
        return masks.to(waveforms.device, non_blocking=True)

    def _predict(self, network: nn.Module, waveforms: torch.Tensor, masks: torch.Tensor):
        """Cross-entropy and whether the prediction is right, at all frames, and the targets; each `(N, L)`."""
        targets = self.model.units(waveforms)
        logits = network(waveforms, masks)[..., : self.model.num_units].float()
        losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return losses, logits.argmax(dim=-1) == targets, targets


def span_masks(num_clips: int, num_frames: int, probability: float, length: int, seed: int) -> torch.Tensor:
    """Spans of hidden frames, `(num_clips, num_frames)` bool on the CPU; the same for the same seed.

    Each frame starts a span with this probability; spans overlap, lie inside the clip, and a clip has at least one.
    """
    length = min(length, num_frames)
    noise = torch.rand(num_clips, num_frames - length + 1, generator=torch.Generator().manual_seed(seed))
    starts = (noise < probability) | (noise == noise.amin(dim=1, keepdim=True))
    padded = functional.pad(starts.float(), (length - 1, length - 1))
    return functional.max_pool1d(padded, length, stride=1) > 0


def _clips(batch: dict) -> torch.Tensor:
    """Stems and mixtures at 16 kHz, `(B (S + 1), T / 3)`, T cut to whole frames."""
    clips = torch.cat((batch["stems"], batch["mixture"][:, None]), dim=1).flatten(0, 1)
    clips = clips[:, : clips.shape[1] // (DECIMATION * HOP_LENGTH) * DECIMATION * HOP_LENGTH]
    return decimate(clips, DECIMATION)


def _padded(waveforms: torch.Tensor) -> torch.Tensor:
    return functional.pad(waveforms, (PADDING, PADDING))


def _rms(waveforms: torch.Tensor) -> torch.Tensor:
    """`(N, T)` -> `(N,)`."""
    return waveforms.square().mean(dim=-1).sqrt()


def _perplexity(targets: torch.Tensor, audible: torch.Tensor, num_units: int) -> torch.Tensor:
    """exp(entropy) of the units of audible clips: how many are in use."""
    weights = audible.expand_as(targets).flatten().float()
    counts = weights.new_zeros(num_units).index_add_(0, targets.flatten(), weights)
    shares = counts / counts.sum().clamp(min=1)
    return torch.special.entr(shares).sum().exp()


def _num_frames(config: HubertConfig, num_samples: int) -> int:
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def _forget_phase(model: HubertPretraining, incompatible_keys):
    model.known_phase = None
