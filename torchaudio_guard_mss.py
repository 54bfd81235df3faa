"""Keep transformers' audio part importable where torchaudio is installed but does not load.

torchaudio's wheels link the libraries of one torch with CUDA. Beside another torch, such as one for CPUs only, its
import fails, and with it that of `transformers.audio_utils`, which imports torchaudio wherever it is installed and so
takes feature extractors, processors, pipelines and HuBERT along. Nothing else that this project uses needs torchaudio.

`import torchaudio_guard_mss` before transformers' audio classes imports that one module past a torchaudio that does
not load. The stand-in does not stay in `sys.modules`: other people's `import torchaudio` fails or works as it would
without this project. Where torchaudio is absent or loads, this module changes nothing.
"""

import importlib.util
import sys


def import_audio_utils():
    """Import `transformers.audio_utils`; while it is imported, an empty module stands in for a torchaudio that fails.

    That module names torchaudio in `load_audio(backend="torchaudio")` only, which then raises what importing torchaudio
    raises.
    """
    if "torchaudio" in sys.modules or "transformers.audio_utils" in sys.modules:
        return
    spec = importlib.util.find_spec("torchaudio")
    if spec is None:
        return
    try:
        import torchaudio  # noqa: F401
    except Exception:  # OSError without CUDA's libraries; RuntimeError or ImportError with those of another version
        stand_in = sys.modules["torchaudio"] = importlib.util.module_from_spec(spec)  # transformers looks for a spec
        try:
            import transformers.audio_utils  # noqa: F401
        finally:
            del sys.modules["torchaudio"]
        # Only from here on: before, the name would have led back to the stand-in itself.
        stand_in.__getattr__ = lambda name: getattr(importlib.import_module("torchaudio"), name)


import_audio_utils()
