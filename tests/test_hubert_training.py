"""Stage `hubert`: what it learns, from which targets, and that interrupting or splitting it changes nothing."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from transformers import HubertModel

from modeling_mss.semantic_hcodec import HubertFeatures, decimate
from tests.tiny import tiny_hubert_config
from training_mss.configuration import HubertStageConfig, TrainingConfig
from training_mss.hubert_step import FEATURE_TARGETS, MEL_TARGETS, HubertStage, span_masks

UNITS = 20


def make_stage(seed: int = 0, dropout: float = 0.0, model: dict | None = None, **options) -> HubertStage:
    """A tiny stage whose targets change at step 60."""
    dropouts = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), dropout)
    fields = {**tiny_hubert_config().to_diff_dict(), **dropouts, **(model or {})}
    units = {"num_mel_units": UNITS, "num_feature_units": UNITS, "feature_layer": 1, "relabel_step": 60}
    config = HubertStageConfig(model=fields, mask_length=5, **{**units, **options})
    torch.manual_seed(seed)
    return HubertStage(TrainingConfig(hubert=config))


def make_optimizer(stage: HubertStage) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight for weight in stage.model.parameters() if weight.requires_grad], lr=3e-3)


def make_batch(sounds: torch.Tensor, step: int, num_crops: int = 2) -> dict:
    """Crops of 1 s, where in the sounds the step decides."""
    generator = torch.Generator().manual_seed(step)
    offsets = torch.randint(sounds.shape[1] - 48000, (num_crops,), generator=generator).tolist()
    stems = torch.stack([sounds[:, offset : offset + 48000] for offset in offsets])
    return {"stems": stems, "mixture": stems.sum(dim=1)}


def train(stage: HubertStage, optimizer: torch.optim.Optimizer, sounds: torch.Tensor, steps: range) -> torch.Tensor:
    """What the loop does; losses and accuracies `(steps, 2)`."""
    history = []
    for step in steps:
        torch.manual_seed(step)
        batch = make_batch(sounds, step)
        stage.prepare_step(batch, step)
        for part in stage.step(batch, step):
            optimizer.zero_grad()
            part.loss.backward()
            optimizer.step()
            history.append(torch.stack((part.metrics["loss"], part.metrics["accuracy"])))
    return torch.stack(history)


def without_gradient(stage: HubertStage) -> list[str]:
    return [name for name, weight in stage.model.named_parameters() if weight.requires_grad and weight.grad is None]


def test_learns_mel_units_then_its_own(four_sounds):
    stage = make_stage()
    optimizer = make_optimizer(stage)
    undefined = stage.validate(make_batch(four_sounds, 999))
    assert undefined["loss"].isnan().all() and undefined["accuracy"].shape == (2,)
    before = train(stage, optimizer, four_sounds, range(60))
    assert stage.model.phase == MEL_TARGETS and without_gradient(stage) == []
    student = {name: value.clone() for name, value in stage.model.hubert.state_dict().items()}
    after = train(stage, optimizer, four_sounds, range(60, 120))
    assert stage.model.phase == FEATURE_TARGETS and without_gradient(stage) == []
    for history, lower, above_chance in ((before, 0.85, 3), (after, 0.65, 6)):
        assert history[0, 0] == pytest.approx(math.log(UNITS), abs=1e-4)  # the head starts from zero
        loss, accuracy = history[-10:].mean(dim=0)
        assert loss < lower * math.log(UNITS) and accuracy > above_chance / UNITS
    teacher = stage.model.teacher.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in teacher.items())
    assert not any(name.startswith("encoder.layers.1.") for name in teacher)  # no deeper than `feature_layer`
    assert not stage.model.teacher.training and stage.model.hubert.training
    scores = stage.validate(make_batch(four_sounds, 999))
    assert scores["loss"].mean() < 0.8 * math.log(UNITS)
    assert all(torch.equal(value, scores[name]) for name, value in stage.validate(make_batch(four_sounds, 999)).items())
    assert stage.demonstrate(make_batch(four_sounds, 999)) == ({}, {})


@pytest.mark.parametrize("interrupted", [3, 7])
def test_goes_on_as_if_never_interrupted(four_sounds, interrupted):
    """Before and after the targets change at step 5, dropout included."""
    stage = make_stage(dropout=0.1, relabel_step=5)
    optimizer = make_optimizer(stage)
    train(stage, optimizer, four_sounds, range(interrupted))
    saved = copy.deepcopy((stage.model.state_dict(), optimizer.state_dict()))
    expected = train(stage, optimizer, four_sounds, range(interrupted, 10))
    resumed = make_stage(seed=1, dropout=0.1, relabel_step=5)
    resumed_optimizer = make_optimizer(resumed)
    resumed.model.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    assert torch.equal(train(resumed, resumed_optimizer, four_sounds, range(interrupted, 10)), expected)


def losses_in_both_phases(stage: HubertStage, batch: dict) -> torch.Tensor:
    losses = []
    for step in (0, 60):
        torch.manual_seed(0)
        stage.prepare_step(batch, step)
        torch.nn.init.normal_(stage.model.head.weight)  # from zero every loss would be the same
        part = next(stage.step(batch, step))
        losses.append(torch.stack([part.metrics[name] for name in ("loss", "accuracy", "unmasked_accuracy")]))
    return torch.stack(losses)


def run_as_one_of_two(rank: int, folder, batch: dict):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = {name: values.chunk(2)[rank] for name, values in batch.items()}
    torch.save(losses_in_both_phases(make_stage(), part), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_of_one(tmp_path, four_sounds):
    batch = make_batch(four_sounds, 0, num_crops=4)
    batch["stems"][0, 1] = 0.0  # so that the processes do not count equally many frames
    # Forked, since starting Python and importing transformers twice takes longer than all of this file.
    start_processes(run_as_one_of_two, (tmp_path, batch), nprocs=2, start_method="fork")
    expected = losses_in_both_phases(make_stage(), batch)
    mean = sum(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)) / 2  # as DDP and the loop average
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=0)


def test_silent_clips_count_for_nothing(four_sounds):
    batch = make_batch(four_sounds, 0, num_crops=1)
    with_silence = {name: torch.cat((values, torch.zeros_like(values))) for name, values in batch.items()}
    expected, losses = (losses_in_both_phases(make_stage(), each) for each in (batch, with_silence))
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    stage = make_stage()
    stage.prepare_step(with_silence, 0)
    scores = stage.validate(with_silence)
    assert scores["loss"].isnan().tolist() == scores["accuracy"].isnan().tolist() == [False, True]
    silence = {name: torch.zeros_like(values) for name, values in batch.items()}
    assert next(stage.step(silence, 0)).loss == 0
    with pytest.raises(ValueError, match="k-means needs"):
        make_stage().prepare_step(silence, 0)


def test_masks_are_spans_and_depend_on_the_seed_alone():
    masks = span_masks(200, 100, 0.08, 10, seed=3)
    assert torch.equal(masks, span_masks(200, 100, 0.08, 10, seed=3))
    assert not torch.equal(masks, span_masks(200, 100, 0.08, 10, seed=4))
    assert 0.45 < masks.float().mean() < 0.55  # 1 - 0.92^10 = 0.57 away from the ends
    one = span_masks(50, 100, 0.0, 10, seed=0)
    assert (one.sum(dim=1) == 10).all() and (one.int().diff(dim=1) == 1).sum(dim=1).max() <= 1
    assert span_masks(2, 4, 0.0, 10, seed=0).all()  # a clip shorter than a span


def test_export_is_the_hubert_of_a_codec(tmp_path, four_sounds):
    stage = make_stage(gradient_checkpointing=True)
    train(stage, make_optimizer(stage), four_sounds, range(2))
    stage.export(tmp_path)
    loaded = HubertModel.from_pretrained(tmp_path)
    features = HubertFeatures(loaded.config)
    features.hubert.load_state_dict(loaded.state_dict())
    waveform = decimate(four_sounds[:, :48000], 3)
    assert features(waveform).shape == (4, 50, loaded.config.hidden_size)
    expected = stage.model.hubert.eval()(waveform).last_hidden_state
    assert torch.equal(loaded(waveform).last_hidden_state, expected)


def test_gradient_checkpointing_changes_no_gradient(four_sounds):
    gradients = []
    for checkpointing in (False, True):
        stage = make_stage(gradient_checkpointing=checkpointing)
        losses_in_both_phases(stage, make_batch(four_sounds, 0))
        next(stage.step(make_batch(four_sounds, 0), 60)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in stage.model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`feature_layer` must be 1 to 2"):
        make_stage(feature_layer=3)
    with pytest.raises(ValueError, match="320 samples"):
        make_stage(model={"conv_stride": [5, 2, 2, 2, 2, 2, 1]})
    with pytest.raises(ValueError, match="320 samples"):
        make_stage(model={"conv_kernel": [5, 2, 2, 2, 2, 2, 2]})  # hears 320 samples: one frame too many
    with pytest.raises(ValueError, match="mask_time_prob"):
        make_stage(model={"mask_time_prob": 0.0})
