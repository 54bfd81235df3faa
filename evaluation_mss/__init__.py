"""How good stems are, by the paper's numbers and beside the systems that it compares to.

manifest -> songs.py (excerpts with true stems) -> systems.py, baselines.py, bounds.py (estimates) -> protocol.py
(scores of a song, over signal_metrics.py and perceptual_metrics.py; roundtrip.py for the codec) -> evaluation.py
(resumable runs) -> tables.py, report.py, pictures.py. metrics/ holds the metrics as Hugging Face `evaluate`
modules.
"""

import torchaudio_guard_mss  # noqa: F401  (has to run before transformers)
