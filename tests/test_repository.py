"""House rules that are checked from the code: who may import whom, and what Hub-shipped files may hold."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_tests_that_documents_name_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for name in re.findall(r"`(test_\w+)`", path.read_text()):
            assert f"def {name}(" in tests, f"{path.name} names {name}"


def test_no_file_is_too_long_to_read():
    for path in ROOT.glob("*_mss/**/*.py"):
        assert len(path.read_text().splitlines()) <= 500, path
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version="{citation["version"]}"' in (ROOT / "setup.py").read_text()
    assert citation["license"] == "Apache-2.0" and "2604.09371" in citation["references"][0]["url"]


@pytest.mark.parametrize("package", list(PACKAGES))
def test_the_guard_runs_before_transformers_in_every_package_that_imports_it(package):
    tops = {
        path.name: [module.split(".")[0] for _, module, *_ in imports(path)] for path in ROOT.glob(f"{package}/*.py")
    }
    if any("transformers" in modules for modules in tops.values()):
        first, *_ = [top for top in tops["__init__.py"] if top in ("torchaudio_guard_mss", "transformers")]
        assert first == "torchaudio_guard_mss"


# What a user does in one process, having a torchaudio that does not load.
BESIDE_A_BROKEN_TORCHAUDIO = """
import importlib, sys

def fails(module):
    try:
        importlib.import_module(module)
    except OSError as error:
        return "not load this library" in str(error)

import mss_lm
from transformers import HubertModel, SequenceFeatureExtractor
from transformers.pipelines import PIPELINE_REGISTRY
print(PIPELINE_REGISTRY.check_task("audio-source-separation")[1]["impl"].__name__)
assert "torchaudio" not in sys.modules and "torchaudio._extension" not in sys.modules
assert fails("torchaudio")
try:
    sys.modules["transformers.audio_utils"].torchaudio.load
except OSError:
    print("as without us")
# The other way round: the user's import comes first, and fails.
del sys.modules["transformers.audio_utils"], sys.modules["torchaudio_guard_mss"]
assert fails("transformers.audio_utils")
import torchaudio_guard_mss
import transformers.audio_utils
assert "torchaudio" not in sys.modules
"""


def test_a_torchaudio_that_does_not_load_does_no_harm_and_nothing_is_left_in_its_place(tmp_path):
    metadata = tmp_path / "torchaudio-9.dist-info" / "METADATA"
    extension = tmp_path / "torchaudio" / "_extension.py"
    for file, text in [
        (metadata, "Metadata-Version: 2.1\nName: torchaudio\nVersion: 9"),
        (extension.with_name("__init__.py"), "from . import _extension"),
    ]:
        file.parent.mkdir()
        file.write_text(text)

    def lines_printed(code: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    extension.write_text("raise OSError('Could not load this library')")
    assert lines_printed(BESIDE_A_BROKEN_TORCHAUDIO) == ["AudioSourceSeparationPipeline", "as without us"]
    extension.write_text("")  # one that loads is left alone
    code = "import torchaudio_guard_mss, torchaudio, sys; print(torchaudio._extension.__file__, 'torch' in sys.modules)"
    assert lines_printed(code) == [f"{extension} False"]
