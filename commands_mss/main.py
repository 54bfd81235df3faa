"""Entry point of `mss-lm`."""

import argparse
import signal
import sys

from . import evaluate, prepare, separate

COMMANDS = {"separate": separate, "prepare": prepare, "evaluate": evaluate}


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
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return COMMANDS[options.subcommand].run(options)
    except KeyboardInterrupt:
        print("mss-lm: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signal_number, frame):
    """A request to end is answered as Ctrl-C is: temporary files go."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
