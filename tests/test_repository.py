"""House rules that are checked from the code: who may import whom, and what Hub-shipped files may hold."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "modeling_mss": set(),
    "processing_mss": set(),
    "data_mss": {"processing_mss"},
    "training_mss": {"modeling_mss", "processing_mss", "data_mss"},
    "evaluation_mss": {"modeling_mss", "processing_mss", "data_mss"},
}
HUB_SHIPPED = ("modeling_mss", "processing_mss")
EVERY_USER_HAS = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "yaml"}


def imports(path: Path):
    """(level, module, names, inside a try) of every import of a file."""
    tree = ast.parse(path.read_text())
    guarded = {child for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, [], node in guarded
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names], node in guarded


@pytest.mark.parametrize("package", [name for name in PACKAGES if (ROOT / name).is_dir()])
def test_imports_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for level, module, _, _ in imports(path):
            top = module.split(".")[0]
            if level == 0 and top.endswith("_mss") and top != "torchaudio_guard_mss":
                assert top == package or top in PACKAGES[package], f"{path.name} imports {top}"


@pytest.mark.parametrize("package", HUB_SHIPPED)
def test_hub_shipped_files_are_flat_and_need_only_what_every_user_has(package):
    files = list((ROOT / package).rglob("*.py"))
    assert all(path.parent.name == package for path in files)
    for path in files:
        if path.name == "__init__.py":
            continue
        for level, module, _, guarded in imports(path):
            if level:
                assert level == 1 and module and "." not in module, f"{path.name}: only `from .file import name`"
            elif not guarded:
                top = module.split(".")[0]
                assert top in EVERY_USER_HAS | sys.stdlib_module_names, f"{path.name} needs {top}"


def test_file_names_are_unique_over_hub_shipped_packages():
    names = [path.name for package in HUB_SHIPPED for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names))


def test_no_file_is_too_long_to_read():
    for path in ROOT.glob("*_mss/*.py"):
        assert len(path.read_text().splitlines()) <= 500, path


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed")
def test_torchaudio_beside_a_cpu_only_torch_does_no_harm():
    code = (
        "import mss_lm, torch, torchaudio.functional as F; print(F.resample(torch.zeros(1, 480), 48000, 16000).shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "160" in result.stdout, result.stderr
