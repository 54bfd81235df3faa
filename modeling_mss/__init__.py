"""Models: the HCodec audio codec and the separator. Tensors in, tensors out; nothing here reads audio files.

Importing this package registers the models with transformers' Auto classes.
"""

import torchaudio_guard_mss  # noqa: F401  (has to run before transformers)

# isort: split
from transformers import AutoConfig, AutoModel

from .configuration_hcodec import HCodecConfig
from .configuration_mss import MssConfig, MssEncoderConfig
from .modeling_hcodec import HCodecModel
from .modeling_mss import MssForConditionalGeneration

for config_class in (HCodecConfig, MssConfig):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
for model_class in (HCodecModel, MssForConditionalGeneration):
    AutoModel.register(model_class.config_class, model_class, exist_ok=True)
    model_class.register_for_auto_class("AutoModel")

# A repository that brings its pipeline's code names it in config.json, and transformers would not run it without
# `trust_remote_code`. Where this package is installed the registry has the pipeline, so the name is not read.
MssConfig.left_out = ("custom_pipelines",)

__all__ = ["HCodecConfig", "HCodecModel", "MssConfig", "MssEncoderConfig", "MssForConditionalGeneration"]
