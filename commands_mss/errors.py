"""How commands fail: one line that says what is wrong, and exit code 1. With MSS_DEBUG=1 the traceback too."""

import os
import re
import sys
import traceback

from safetensors import SafetensorError

# Wrong input and options, files, packages that are missing; torch's, about devices and memory; weights that are none.
EXPECTED_ERRORS = (ValueError, OSError, ImportError, RuntimeError, AssertionError, SafetensorError)


def fail(command: str, error: BaseException, subject: str = "") -> int:
    """Report an error in one line; returns the exit code. `subject`: what it is about, where its text does not say so.

    What is not expected is a mistake of ours and says so. `python -X dev` and MSS_DEBUG=1 show where it came from.
    """
    debug = sys.flags.dev_mode or os.environ.get("MSS_DEBUG", "0") not in ("", "0")
    if debug:
        traceback.print_exception(error)
    text = re.sub(r"\[Errno -?\d+\] *", "", " ".join(str(error).split()))
    if not isinstance(error, EXPECTED_ERRORS):
        hint = "" if debug else ", best with what MSS_DEBUG=1 shows"
        text = f"{type(error).__name__}: {text} (a mistake of this program: please report it{hint})"
    print(f"{command}: error: {f'{subject}: ' if subject else ''}{text}", file=sys.stderr)
    return 1
