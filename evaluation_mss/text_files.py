"""Text files that are there whole, or as they were."""

import os
import uuid
from pathlib import Path


def replace_text(path: Path, text: str):
    """Write a file that several processes may write, and others read meanwhile."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
