"""How good stems are, by the paper's numbers and beside the systems that it compares to.

manifest -> songs.py (excerpts with true stems) -> systems.py, baselines.py, bounds.py (estimates) -> protocol.py
(scores of a song by the metrics of metric_table.py; roundtrip.py for the codec) -> evaluation.py, results.py (resumable
runs and their folder) -> summary.py, tables.py, report.py. calibration.py chooses settings of a checkpoint. metrics/
holds the metrics as Hugging Face `evaluate` modules.
"""

import torchaudio_guard_mss  # noqa: F401  (has to run before transformers)
