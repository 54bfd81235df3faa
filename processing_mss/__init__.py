"""Audio and codes, no weights: features, windows, audio files, and the pipeline.

Importing this package registers the feature extractor, the processor and the task `audio-source-separation` with
transformers. The model registers itself when `modeling_mss` is imported; `import mss_lm` does both.
"""

from pathlib import Path

import torchaudio_guard_mss  # noqa: F401  (has to run before transformers)

# isort: split
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .audio_reader_mss import AUDIO_SUFFIXES, AudioReader, AudioReadError, damage_message, read_audio, read_comment
from .audio_writer_mss import AudioWriteError, AudioWriter, check_format, write_audio
from .estimation_mss import fitting_dtype
from .feature_extraction_mss import MssFeatureExtractor, log_mel_spectrogram, mel_power_spectrogram
from .filtering_mss import WindowEstimate, filter_windows, wiener_filter
from .options_mss import SeparationOptions
from .pipeline_mss import AudioSourceSeparationPipeline
from .processing_mss import MssProcessor
from .resampling_mss import StreamingResampler, resample
from .separation_mss import limit_blocks

# The checkpoint that ships with the package lies beside this folder, installed or not.
DEFAULT_MODEL = str(Path(__file__).resolve().parent.parent / "pretrained_mss")

# The Auto classes find these two by the class names that saved processors carry. The key of the registry is a
# configuration class elsewhere; that of the model belongs to `modeling_mss`, which this package never imports.
AutoFeatureExtractor.register(MssFeatureExtractor, MssFeatureExtractor, exist_ok=True)
AutoProcessor.register(MssProcessor, MssProcessor, exist_ok=True)
MssFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
MssProcessor.register_for_auto_class("AutoProcessor")

PIPELINE_REGISTRY.register_pipeline(
    "audio-source-separation",
    pipeline_class=AudioSourceSeparationPipeline,
    pt_model=AutoModel,
    default={"model": (DEFAULT_MODEL, "main")},
    type="audio",
)

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioReadError",
    "AudioReader",
    "AudioSourceSeparationPipeline",
    "AudioWriteError",
    "AudioWriter",
    "MssFeatureExtractor",
    "MssProcessor",
    "SeparationOptions",
    "StreamingResampler",
    "WindowEstimate",
    "check_format",
    "damage_message",
    "filter_windows",
    "fitting_dtype",
    "limit_blocks",
    "log_mel_spectrogram",
    "mel_power_spectrogram",
    "read_audio",
    "read_comment",
    "resample",
    "wiener_filter",
    "write_audio",
]
