"""Upload a separator to the Hugging Face Hub, or a Space: the app in the browser, with a separator inside.

examples:
  mss-lm push me/separator --model runs/separator/final    weights, processor, code and card, in one commit
  mss-lm push me/separator --dry_run                       which files that would be, and how large; nothing is sent
  mss-lm push --space me/demo --model me/separator         an app that anybody can open
  mss-lm push --space me/demo --private                    with the model that ships, for yourself

Log in first: `hf auth login`, with a token that may write (https://huggingface.co/settings/tokens), or set HF_TOKEN.
The repository is made if it is not there; files of others in it stay. Whoever has transformers loads the separator by
`pipeline("audio-source-separation", model="me/separator", trust_remote_code=True)`, without this package. A Space needs
no other files: its code and its model are uploaded with it.

exit codes: 0 it is uploaded (or listed), 1 it is not, 2 wrong usage, 130 interrupted
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from .loading import SUMS, find_file, load_separator

# What `import mss_lm` and the app need of this package; beside the app, so no package index needs to have it.
SPACE_CODE = ("modeling_mss", "processing_mss", "mss_lm.py", "torchaudio_guard_mss.py")
CARD = """---
{metadata}
---

# {name}

A music source separator, made with mss-lm: {stems} of a song ({outputs}), {parameters:.1f} million parameters.
{untrained}
```python
from transformers import pipeline

separate = pipeline("audio-source-separation", model="{repository}", trust_remote_code=True)
stems = separate("song.mp3")
```

Nothing is known of its training: which songs it heard, under which licences, and how well it separates. The licence of
its weights is **unknown** too. (There was no card, README.md, beside the model when it was uploaded.)
"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("repository", metavar="ORG/NAME", help="where to: your name or an organisation's, and its own")
    parser.add_argument(
        "--model", help="folder or Hub id of a separator (default: the one that ships with the package)"
    )
    parser.add_argument("--space", action="store_true", help="upload the app, with the model inside")
    parser.add_argument("--private", action="store_true", help="if the repository is new: for you or your organisation")
    parser.add_argument(
        "--dry_run", action="store_true", help="list the files and their sizes, and upload nothing (needs no login)"
    )


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    from processing_mss import DEFAULT_MODEL

    check_name(options.repository)
    if not options.dry_run:
        check_login()
    model = options.model or DEFAULT_MODEL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.space:
            write_space(folder, model)
            has_card = True
        else:
            has_card = write_model(folder, model, options.repository)
        if options.dry_run:
            return list_files(folder)
        url = upload(folder, options, keeps_card=not has_card)
    print(f"{options.repository}: uploaded, {url}")
    return 0


def check_name(repository: str):
    """Raise ValueError unless this can be the name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        if "/" in repository:
            return
        reason = "whose it is must stand before its name"
    except HFValidationError as error:
        reason = str(error).partition(" Use `repo_type`")[0].rstrip(".")
    raise ValueError(f"A repository is named ORG/NAME, like me/separator; got {repository!r}: {reason}.")


def check_login():
    """Raise ValueError if it is clear beforehand that nothing can be uploaded."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it, or look with --dry_run.")
    if get_token() is None:
        raise ValueError(
            "You are not logged in to the Hub: run `hf auth login` with a token that may write "
            "(https://huggingface.co/settings/tokens) or set HF_TOKEN, or look with --dry_run."
        )


def write_model(folder: Path, name: str, repository: str) -> bool:
    """Write a separator as it is uploaded; returns whether its card is its own, not one that was made here."""
    from processing_mss import AudioSourceSeparationPipeline

    model, processor = load_separator(name, "auto")
    AudioSourceSeparationPipeline(model=model, processor=processor).save_pretrained(folder)
    weights = find_file(name, "model.safetensors")
    if weights is not None:  # as they are stored: those of half the size are loaded in float32
        shutil.copyfile(weights, folder / "model.safetensors")
    card = find_file(name, "README.md")
    if card is not None:
        shutil.copyfile(card, folder / "README.md")
    else:
        (folder / "README.md").write_text(make_card(model, repository), encoding="utf-8")
    write_sums(folder)
    return card is not None


def make_card(model, repository: str) -> str:
    """A card that says what can be known of a separator that has none."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["audio-source-separation", "music-source-separation", "music"],
    )
    config = model.config
    return CARD.format(
        metadata=metadata.to_yaml(),
        name=repository.rpartition("/")[2],
        repository=repository,
        stems=", ".join(config.stems),
        outputs=", ".join(config.outputs),
        parameters=model.num_parameters() / 1e6,
        untrained="**They are random: it is not trained.**\n" if config.untrained else "",
    )


def write_sums(folder: Path):
    """Write SHA256SUMS of all files of a folder but the card, which people edit on the Hub."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name not in (SUMS, "README.md"):
            with open(path, "rb") as content:
                lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {path.name}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def write_space(folder: Path, name: str):
    """Write the app, the code that it needs, and a separator in `pretrained_mss`, where that code looks for one."""
    from huggingface_hub import metadata_load, metadata_save

    from processing_mss import DEFAULT_MODEL

    package = Path(DEFAULT_MODEL).parent
    app = package / "space_mss" if (package / "space_mss").is_dir() else package / "space"  # installed, in a checkout
    no_caches = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(app, folder, dirs_exist_ok=True, ignore=no_caches)
    for part in SPACE_CODE:
        if part.endswith(".py"):
            shutil.copyfile(package / part, folder / part)
        else:
            shutil.copytree(package / part, folder / part, ignore=no_caches)
    model_folder = folder / Path(DEFAULT_MODEL).name
    if not write_model(model_folder, name, name):
        (model_folder / "README.md").unlink()  # it tells how to load it from the Hub, which it may not be on
    for path in model_folder.glob("*.py"):  # it stands beside the app
        path.unlink()
    write_sums(model_folder)
    if not os.path.isdir(name):
        card = folder / "README.md"
        metadata_save(card, {**metadata_load(card), "models": [name]})


def list_files(folder: Path) -> int:
    """Print all files below a folder with their sizes in bytes, and the sum."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for file, size in sorted(sizes.items()):
        print(f"{size:>12,}  {file}")
    print(f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files would be uploaded")
    return 0


def upload(folder: Path, options: argparse.Namespace, keeps_card: bool) -> str:
    """Upload a folder in one commit; returns the repository's address. keeps_card: if there is one, ours is not for it.

    Raises:
        OSError: the Hub refuses it or cannot be reached.
        ValueError: it shall be private, and is there and public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of the client that this version of huggingface_hub uses

    api, repository = HfApi(), options.repository
    of_type = {"repo_type": "space" if options.space else "model"}
    try:
        url = api.create_repo(
            repository,
            private=options.private or None,  # None: as it is the custom of the organisation
            exist_ok=True,
            space_sdk="gradio" if options.space else None,
            **of_type,
        )
        if options.private and not api.repo_info(repository, **of_type).private:
            raise ValueError(
                f"{repository} is there already and public, so --private cannot be: take another name, or make it "
                f"private first, in its settings at {url}."
            )
        if keeps_card and api.file_exists(repository, "README.md", **of_type):
            (folder / "README.md").unlink()
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Uploaded by mss-lm push", **of_type)
    except HTTPError as error:
        raise OSError(upload_problem(error, repository)) from error
    return url


def upload_problem(error: Exception, repository: str) -> str:
    """What an error of the Hub's client means to who uploads."""
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    if response is None:
        return f"The Hub ({constants.ENDPOINT}) cannot be reached ({error}): look at the connection and try again."
    if response.status_code == 401:
        return (
            "The Hub does not know the token that you are logged in with: run `hf auth login` again with one of "
            "https://huggingface.co/settings/tokens, or set HF_TOKEN."
        )
    if response.status_code == 403:
        return (
            f"The token that you are logged in with may not write to {repository}: take a name of your own, or log in "
            "(`hf auth login`) with a token that may write there."
        )
    reason = getattr(error, "server_message", None) or " ".join(str(error).split())
    return f"The Hub refuses to take {repository} (status {response.status_code}): {reason}"
