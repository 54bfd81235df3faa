"""`import mss_lm` makes transformers know the separator: its models, its processor and its pipeline.

```python
import mss_lm
from transformers import pipeline

separate = pipeline("audio-source-separation")
for stem in separate("song.mp3"):
    print(stem["label"], stem["audio"].shape, stem["sampling_rate"])
```
"""

import modeling_mss  # noqa: F401
import processing_mss  # noqa: F401
