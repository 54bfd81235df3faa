"""Loading a separator of a folder or the Hub, with errors that say what is wrong with it."""

import hashlib
import os
from pathlib import Path

SUMS = "SHA256SUMS"  # of files beside it, as sha256sum writes and reads it


def load_separator(name: str, dtype):
    """Model and processor of a folder or Hub id, the model in this torch dtype.

    Raises:
        ValueError: there is no separator of this name, or it is damaged.
        OSError: it cannot be downloaded.
    """
    from huggingface_hub.errors import HTTPError  # of the client that this version of huggingface_hub uses
    from transformers.utils import logging

    from modeling_mss import MssForConditionalGeneration
    from processing_mss import MssProcessor

    # Not by the pipeline, which tells what is wrong with a checkpoint in a page of text; so does the load report.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        if not os.path.isdir(name) and (name.count("/") != 1 or name[0] in "./~"):
            raise ValueError(f"There is no folder {name}, and a separator on the Hub would be named ORG/NAME.")
        check_sums(name)
        return MssForConditionalGeneration.from_pretrained(name, dtype=dtype), MssProcessor.from_pretrained(name)
    except (AttributeError, KeyError, TypeError) as error:  # transformers' own, where a configuration is none
        raise ValueError(f"{name} holds no separator ({type(error).__name__}: {error}): get it again.") from error
    except HTTPError as error:
        raise OSError(f"{name} cannot be downloaded ({error}): look at the connection and try again.") from error
    except (OSError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def find_file(name: str, file: str) -> Path | None:
    """A file of a folder or Hub id, downloaded if it is not in the cache; None if there is none of this name.

    Raises:
        OSError: there is no such Hub id, or it cannot be reached.
    """
    from transformers.utils import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def git_hash(path: Path) -> str:
    """By which the cache names a download that is no large file; a large one by its SHA-256."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def check_sums(name: str):
    """Raise ValueError unless the files that are loaded are those that SHA256SUMS tells of, where there is one.

    A download is checked for its length only, and a disk may lose some of it later: stems would differ, unnoticed.
    """
    try:
        sums = find_file(name, SUMS)
    except OSError:
        return  # loading says what is wrong with the name
    if sums is None:
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, file = line.partition(" ")
        file = file.lstrip(" *")
        if "/" in file or not file.endswith((".json", ".safetensors")):
            continue  # the codec for training; code, which this package has itself
        path = find_file(name, file)
        if path is None:
            raise ValueError(f"There is no {file} in {name}, of which its {SUMS} tells: get the checkpoint again.")
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected:
            if path.resolve().name in (found, git_hash(path)):
                continue  # as it is on the Hub, where `push_to_hub` has replaced it since
            if os.path.isdir(name):
                remedy = f"get it again, or delete {sums} if you have changed it yourself"
            else:
                remedy = f"delete {path.resolve()}, and the next call downloads it again"
            raise ValueError(
                f"The file {file} of {name} is damaged: its SHA-256 is {found[:8]}..., expected {expected[:8]}... as "
                f"in {SUMS}; {remedy}."
            )
