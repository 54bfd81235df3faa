"""Entry point of `mss-lm`."""

import argparse
import signal
import sys

from . import benchmark, evaluate, prepare, push, separate
from .errors import fail

# A request to end, and a terminal that was closed (which Windows does not know).
END_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
COMMANDS = {"separate": separate, "prepare": prepare, "evaluate": evaluate, "benchmark": benchmark, "push": push}


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; returns the exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="mss-lm", description="Music source separation by a language model over neural-codec tokens."
    )
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an abbreviated option would change its meaning when another one is added
        )
        module.add_arguments(subparser)
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be bytes that are no text
    heard = [number for number in END_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup sets it
    before = {number: signal.signal(number, _interrupt) for number in heard}
    try:
        return COMMANDS[options.subcommand].run(options)
    except KeyboardInterrupt:
        print("mss-lm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return fail(f"mss-lm {options.subcommand}", error)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(signal_number, frame):
    """Answered as Ctrl-C is: temporary files go."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
