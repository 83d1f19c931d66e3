"""`prunevid run`: the command line of the runtime."""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata

from prunevid.console.values import number, path, whole
from prunevid.errors import PruneVidError
from prunevid.options import add_prune_options, prune_settings
from prunevid.runtime.answer import Answer
from prunevid.runtime.run_options import add_backend_options, add_frames_option
from prunevid.runtime.text.sampling import SamplingConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    defaults = SamplingConfig()
    parser.add_argument("bundle", type=path, metavar="BUNDLE", help="folder made by `prunevid export`")
    parser.add_argument("--video", type=path, required=True, metavar="FILE", help="video file, or folder of images")
    parser.add_argument(
        "--question",
        required=True,
        action="append",
        dest="questions",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="may be given several times: the video is encoded once",
    )
    parser.add_argument("--no-prune", action="store_true", help="run the same bundle with pruning off")
    add_frames_option(parser)
    add_backend_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per question and nothing else")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max-new-tokens", type=whole, default=defaults.max_new_tokens, metavar="N", help="limit")
    decoding.add_argument("--temperature", type=number, default=defaults.temperature, metavar="X", help="0 is greedy")
    decoding.add_argument("--top-p", type=number, default=defaults.top_p, metavar="X", help="nucleus sampling")
    decoding.add_argument("--top-k", type=whole, default=defaults.top_k, metavar="N", help="0 is off")
    decoding.add_argument("--seed", type=_seed, default=defaults.seed, metavar="N", help="of the sampling")
    decoding.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; repeatable",
    )
    add_prune_options(parser, "those of the bundle")


def _seed(text: str) -> int:
    return whole(text, 2**63 - 1)


def run(args: argparse.Namespace) -> int:
    """Answer the questions, streaming the text to stdout and the figures to stderr."""
    sampling = SamplingConfig(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        stop=tuple(args.stop),
    )
    from prunevid.runtime.pipeline import load

    pipeline = load(args.bundle, args.backend, threads=getattr(args, "threads", None))
    if pipeline.bundle.manifest.model.random_weights and not args.json:
        print("note: this bundle has random weights: its answers mean nothing", file=sys.stderr)
    asked = [pipeline.prompt.encode(question) for question in args.questions]
    exported = pipeline.bundle.manifest.prune
    settings = prune_settings(args, exported)
    if args.no_prune and settings != exported:
        raise PruneVidError("--no-prune and pruning settings exclude each other: give one or the other")
    session = pipeline.open(args.video, frames=getattr(args, "frames", None), prune=not args.no_prune and settings)
    for question, ids in zip(args.questions, asked, strict=True):
        stream = session.stream(ids, sampling)
        for text in stream:
            if not args.json:
                print(_for_terminal(text) if sys.stdout.isatty() else text, end="", flush=True)
        if args.json:
            print(json.dumps({"question": question, **stream.answer.to_dict()}))
        else:
            print(flush=True)
            print(summary(stream.answer), file=sys.stderr)
    return 0


def _for_terminal(text: str) -> str:
    """An answer's text without what does something to a terminal: a model's tokens can be any bytes."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter
        for letter in text
    )


def summary(answer: Answer) -> str:
    """Tokens, memory and time of an answer, in a few short lines."""
    counts, timings = answer.token_counts, answer.timings
    stages = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in timings.stages.items())
    step = timings.decode_per_token
    lines = [
        f"  visual tokens {counts.visual} -> merged {counts.merged} -> kept {counts.kept} ({counts.retained:.1%}), "
        f"text {counts.text}",
        f"  KV cache {answer.kv_bytes / 1e6:.1f} MB, unpruned {answer.kv_bytes_unpruned / 1e6:.1f} MB",
        f"  first token after {1000 * timings.first_token:.0f} ms ({stages})"
        + (f"; then {1000 * step:.1f} ms per token" if step is not None else ""),
    ]
    if answer.skipped_frames:
        lines.append(f"  {answer.skipped_frames} unreadable frames of the video were skipped")
    return "\n".join(lines)
