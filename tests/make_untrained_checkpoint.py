"""Write the untrained checkpoint that `pretrained_mss` holds until a trained one ships.

Run it as `python -m tests.make_untrained_checkpoint pretrained_mss`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.tiny import tiny_model, tiny_processor


def main(output_dir: str):
    model = tiny_model(untrained=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tiny_processor(model.config).save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.suffix in (".json", ".safetensors"):  # the code beside them is this package
                shutil.copy(path, output_dir)


if __name__ == "__main__":
    main(sys.argv[1])
