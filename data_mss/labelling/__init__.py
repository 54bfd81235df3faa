"""Songs without stems labelled by a teacher; README.md says how, file by file."""

from .pseudo_labels import prepare_pseudo_labels
from .teachers import Teacher, load_teacher

__all__ = ["Teacher", "load_teacher", "prepare_pseudo_labels"]
