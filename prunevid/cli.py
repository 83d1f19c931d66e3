"""The command line: `prunevid COMMAND ...`, and every command by its own name (`prunevid-export`).

A command's module is imported when that command is run, so that help answers at once and the runtime's commands
need neither torch nor transformers. Also the rest is imported late: Ctrl-C is dealt with from the first moment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

# Command: (module with add_arguments(parser) and run(args) -> exit status, what it does).
COMMANDS = {
    "demo": ("prunevid.runtime.demo.cli", "ask the model that ships about a sample clip, pruned beside unpruned"),
    "export": ("prunevid.export.cli", "turn a checkpoint into a bundle of ONNX graphs"),
    "build": (
        "prunevid.export.engine.cli",
        "build engines of a bundle: TensorRT on the device, TensorRT for RTX anywhere",
    ),
    "run": ("prunevid.runtime.cli", "ask questions about a video"),
    "profile": ("prunevid.runtime.profile.cli", "measure where time, tokens and memory go, pruned beside unpruned"),
    "show": ("prunevid.runtime.show.cli", "draw which patches of a video are merged, and which a question keeps"),
    "fit": ("prunevid.runtime.fit.cli", "estimate whether a model fits a device, and how fast it will run there"),
    "calibrate": ("prunevid.calibration.cli", "quantize a bundle, and judge it by questions about videos"),
    "migrate": ("prunevid.bundle.migrate_cli", "bring the manifest of an earlier release's bundle up to date"),
}
# What comes with `pip install prunevid`, and the extra that brings what a command needs beyond that.
_OF_EVERY_INSTALLATION = frozenset({"numpy", "onnxruntime", "av", "PIL", "tokenizers", "jinja2", "rich"})
_EXTRAS = {"export": "export", "build": "tensorrt", "calibrate": "calibrate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `prunevid`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], f"prunevid {arguments[0]}", arguments[1:], last=argv is None)
    return _framed("prunevid", lambda: _without_command(arguments), None, last=argv is None)


def _without_command(arguments: Sequence[str]) -> int:
    import argparse

    from prunevid import __version__
    from prunevid.console.parser import CommandParser

    commands = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = CommandParser(
        prog="prunevid",
        description="Put pruned video language models onto edge devices.",
        epilog=f"commands:\n{commands}\n\n`prunevid COMMAND --help` tells more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prunevid {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=[*COMMANDS], help="one of the commands below")
    parser.parse_args(arguments)
    parser.error("the command comes first")


def main_demo() -> int:
    """Entry point of `prunevid-demo`."""
    return _run("demo", "prunevid-demo", sys.argv[1:])


def main_export() -> int:
    """Entry point of `prunevid-export`."""
    return _run("export", "prunevid-export", sys.argv[1:])


def main_build() -> int:
    """Entry point of `prunevid-build`."""
    return _run("build", "prunevid-build", sys.argv[1:])


def main_run() -> int:
    """Entry point of `prunevid-run`."""
    return _run("run", "prunevid-run", sys.argv[1:])


def main_profile() -> int:
    """Entry point of `prunevid-profile`."""
    return _run("profile", "prunevid-profile", sys.argv[1:])


def main_show() -> int:
    """Entry point of `prunevid-show`."""
    return _run("show", "prunevid-show", sys.argv[1:])


def main_fit() -> int:
    """Entry point of `prunevid-fit`."""
    return _run("fit", "prunevid-fit", sys.argv[1:])


def main_calibrate() -> int:
    """Entry point of `prunevid-calibrate`."""
    return _run("calibrate", "prunevid-calibrate", sys.argv[1:])


def main_migrate() -> int:
    """Entry point of `prunevid-migrate`."""
    return _run("migrate", "prunevid-migrate", sys.argv[1:])


def _run(command: str, prog: str, arguments: Sequence[str], *, last: bool = True) -> int:
    return _framed(prog, lambda: _work(command, prog, arguments), command, last=last)


def _framed(prog: str, work: Callable[[], int], command: str | None, *, last: bool) -> int:
    from prunevid.console.signals import Stopping

    with Stopping(last) as stopped:
        # Only now, so that a signal is expected from the first moment.
        from prunevid.console.command import run_framed

        return run_framed(prog, work, lambda error: _missing(error, command))
    if sys.stderr is not None:
        try:
            print(f"{prog}: {stopped.word}", file=sys.stderr, flush=True)
        except OSError:  # nobody to tell
            sys.stderr = None
    return stopped.status


def _work(command: str, prog: str, arguments: Sequence[str]) -> int:
    import argparse
    from importlib import import_module

    from prunevid.console.parser import CommandParser

    module_name, summary = COMMANDS[command]
    module = import_module(module_name)
    parser = CommandParser(
        prog=prog,
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args(arguments))
    return status


def _missing(error: ImportError, command: str | None) -> str | None:
    """What to do about a package that is missing or broken; None where it is a module of ours."""
    package = (error.name or "").partition(".")[0]
    if package == "prunevid":
        return None
    extra = None if package in _OF_EVERY_INSTALLATION else _EXTRAS.get(command or "")
    remedy = f"pip install 'prunevid[{extra}]'" if extra else "pip install prunevid"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is missing: {remedy}"
    return f"{package or 'a package'} cannot be loaded ({error}): {remedy}"


if __name__ == "__main__":
    sys.exit(main())
