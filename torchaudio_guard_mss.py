"""Keep transformers usable where torchaudio is installed beside a CPU-only torch.

torchaudio's wheels link CUDA libraries, so its import fails there, and transformers, which only asks whether the
package is installed, fails with it. Nothing this project takes from torchaudio needs the compiled part. `import` this
module before transformers' audio classes; it does nothing where torchaudio is absent or works.
"""

import importlib.util
import sys
import types


def ensure_torchaudio():
    """Import torchaudio; if its compiled extension does not load, import it with a stand-in for that extension."""
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        import torchaudio
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = extension._IS_ALIGN_AVAILABLE = False

        def fail_if_no_align(function):
            def fail(*args, **kwargs):
                raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which does not load.")

            return fail

        extension.fail_if_no_align = fail_if_no_align
        sys.modules["torchaudio._extension"] = extension
        import torchaudio  # noqa: F401


ensure_torchaudio()
