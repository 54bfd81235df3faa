"""How commands fail: one line that says what is wrong, and exit code 1."""

import sys

# Wrong input and options, files, packages that are missing; and torch's, about devices and memory.
EXPECTED_ERRORS = (ValueError, OSError, ImportError, RuntimeError, AssertionError)


def fail(command: str, error: Exception) -> int:
    """Report an error in one line; returns the exit code."""
    text = " ".join(str(error).split())
    print(f"mss-lm {command}: error: {text}", file=sys.stderr)
    return 1
