"""Training: one loop, five stages.

    configuration.py (configs/*.yaml)  ->  inputs.py (batches)
      ->  hubert_step.py | codec_step.py (with codebooks.py) | mask_step.py | separator_step.py | peer_step.py
    loop.py (the loop)  with  optimization.py, run_state.py (checkpoints), throughput.py, reporting.py, export.py

`train_accelerate.py` at the top of the repository is the entry point.
"""

import torchaudio_guard_mss  # noqa: F401  (has to run before transformers)
