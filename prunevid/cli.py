"""The command line: ``prunevid COMMAND ...``, and every command by its own name (``prunevid-export``).

A command's module is imported when that command is run, so that help answers at once and the runtime's commands
need neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from prunevid import __version__
from prunevid.errors import PruneVidError

# Command: (module with add_arguments(parser) and run(args) -> exit status, what it does).
COMMANDS = {
    "export": ("prunevid.export.cli", "turn a checkpoint into a bundle of ONNX graphs"),
    "build": ("prunevid.export.engine.cli", "build TensorRT engines of a bundle, on the GPU that will run them"),
    "run": ("prunevid.runtime.cli", "ask questions about a video"),
    "profile": ("prunevid.runtime.profile.cli", "measure where time, tokens and memory go, pruned beside unpruned"),
    "show": ("prunevid.runtime.show.cli", "draw which patches of a video are merged, and which a question keeps"),
    "fit": ("prunevid.runtime.fit.cli", "estimate whether a model fits a device, and how fast it will run there"),
    "calibrate": ("prunevid.calibration.cli", "quantize a bundle, and judge it by questions about videos"),
}
# Modules that only some installations have, and the extra that brings them.
_EXTRAS = dict.fromkeys(("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "ml_dtypes"), "export")

USER_ERROR = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``prunevid``; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], f"prunevid {arguments[0]}", arguments[1:])
    commands = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="prunevid",
        description="Put pruned video language models onto edge devices.",
        epilog=f"commands:\n{commands}\n\n`prunevid COMMAND --help` tells more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prunevid {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=[*COMMANDS], help="one of the commands below")
    parser.parse_args(arguments)
    return USER_ERROR


def main_export() -> int:
    """Entry point of ``prunevid-export``."""
    return _run("export", "prunevid-export", sys.argv[1:])


def main_build() -> int:
    """Entry point of ``prunevid-build``."""
    return _run("build", "prunevid-build", sys.argv[1:])


def main_run() -> int:
    """Entry point of ``prunevid-run``."""
    return _run("run", "prunevid-run", sys.argv[1:])


def main_profile() -> int:
    """Entry point of ``prunevid-profile``."""
    return _run("profile", "prunevid-profile", sys.argv[1:])


def main_show() -> int:
    """Entry point of ``prunevid-show``."""
    return _run("show", "prunevid-show", sys.argv[1:])


def main_fit() -> int:
    """Entry point of ``prunevid-fit``."""
    return _run("fit", "prunevid-fit", sys.argv[1:])


def main_calibrate() -> int:
    """Entry point of ``prunevid-calibrate``."""
    return _run("calibrate", "prunevid-calibrate", sys.argv[1:])


def _run(command: str, prog: str, arguments: Sequence[str]) -> int:
    module_name, summary = COMMANDS[command]
    try:
        module = import_module(module_name)
        parser = argparse.ArgumentParser(
            prog=prog,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(parser)
        status: int = module.run(parser.parse_args(arguments))
        return status
    except PruneVidError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"{prog}: error: {error.name} is missing: pip install 'prunevid[{extra}]'", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is nobody left to tell.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
