"""The card beside trained weights, and the way to the Hub."""

import os
from collections import defaultdict
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData

from data_mss.manifest import Song

from .configuration import TrainingConfig
from .run_state import RunState

TAGS = {
    "hubert": ["hubert", "music"],
    "codec": ["neural-audio-codec", "music"],
    "masks": ["audio-source-separation", "music-source-separation", "music"],
    "separator": ["audio-source-separation", "music-source-separation", "music"],
    "peer": ["audio-source-separation", "music-source-separation", "music"],
}
BASE = " It went on from `{}`: what that was trained on, and whom that is owed to, holds for it too."
USE = """
`pipeline("audio-source-separation", model="ORG/NAME", trust_remote_code=True)` separates with it, by
transformers alone; a folder is taken as well.
"""
CARD = """{front_matter}

# {title}

Made by `train_accelerate.py --stage {stage}` of mss-lm: {steps} updates, {minutes:.0f} minutes.{best}{base}
{use}
## Data

{data}

## Validation

{scores}

## Configuration

```yaml
{config}```
"""


def write_model_card(
    directory: str | os.PathLike,
    stage: str,
    config: TrainingConfig,
    state: RunState,
    songs: list[Song],
    scores: dict[str, float],
    base: str | None = None,
) -> None:
    """Write `README.md`: what the weights were trained on and under which licences, with which settings and scores.

    `songs`: those that crops were drawn from; `base`: what it went on from.
    """
    card_data = ModelCardData(
        library_name=None if stage == "peer" else "transformers",
        tags=TAGS[stage],
        pipeline_tag="audio-to-audio" if stage in ("masks", "separator", "peer") else None,
    )
    hours = defaultdict(float)
    for song in songs:
        hours[song.source, song.licence] += song.duration / 3600
    rows = [f"| {source} | {licence} | {hours[source, licence]:.2f} |" for source, licence in sorted(hours)]
    sections = config.to_dict()
    settings = {"stems": config.stems, stage: sections[stage]}
    if stage == "masks":
        settings["separator"] = {"model": sections["separator"]["model"]}
    content = CARD.format(
        front_matter=f"---\n{card_data.to_yaml()}\n---",
        title=f"mss-lm {stage}",
        stage=stage,
        steps=state.step,
        minutes=state.train_seconds / 60,
        best=f" The weights are those after {state.best_step}, the best in validation." if state.best_step else "",
        base=BASE.format("/".join(Path(base).parts[-2:])) if base else "",
        use=USE if stage in ("masks", "separator") else "",
        data="\n".join(["| source | licence | hours |", "|---|---|---|", *rows]),
        scores="\n".join(f"- {name}: {value:.3f}" for name, value in sorted(scores.items())) or "None was made.",
        config=yaml.safe_dump(_plain(settings), sort_keys=False),
    )
    ModelCard(content).save(Path(directory) / "README.md")


def publish(directory: str | os.PathLike, repository: str) -> None:
    """Upload a folder to the Hub; the repository is made if it is not there."""
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(folder_path=directory, repo_id=repository, commit_message="Trained by mss-lm")


def _plain(value):
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
