"""Command line: multigrain demo | prepare | train | evaluate | extract | search | explain.

An error is one line on stderr and exit code 2 (MULTIGRAIN_TRACEBACK=1 shows where it comes from); Ctrl-C is one line
that says how to go on, and exit code 130; so is SIGTERM in training, 143. `demo`, `train` and `evaluate` also
run under torchrun, where a line names its rank. Whatever is slow to import waits until a command needs it.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..checks import printable
from ..hubness import TRANSDUCTIVE

_EXPECTED = (ArithmeticError, ImportError, KeyError, MemoryError, OSError, RecursionError, TypeError, ValueError)
_LONGEST = 450  # letters of a message
_TERMINATED = 143  # what training ends with after SIGTERM and a last checkpoint
_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments, command = list(sys.argv[1:] if argv is None else argv), ""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot write ends nothing
    try:
        parser = _parser()
        options, overrides = parser.parse_known_args(arguments)
        command = options.command
        if overrides and command not in ("train", "evaluate"):
            parser.error(f"{command} takes no {overrides[0]}")
        from . import commands  # here, for --help to answer at once

        with warnings.catch_warnings():
            warnings.showwarning = _Warnings().show
            getattr(commands, f"run_{command}")(options, overrides)
    except KeyboardInterrupt:
        if command in ("", "evaluate", "search", "explain"):
            return _say("interrupted", 130)
        return _say(f"interrupted; {_again(arguments)}", 130)
    except SystemExit as leaving:
        if leaving.code != _TERMINATED:
            raise
        return _say(f"terminated; {_again(arguments)}", _TERMINATED)
    except (*_EXPECTED, RuntimeError) as error:
        if os.environ.get("MULTIGRAIN_TRACEBACK") or not (isinstance(error, _EXPECTED) or _full(error) or _lost(error)):
            raise
        return _say(f"error: {_one_line(error)}", 2)
    return 0


def _full(error: BaseException | str) -> bool:
    """Tell whether an error says that there is not enough memory."""
    said = isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None  # torch's
    return said or isinstance(error, MemoryError)


def _lost(error: Exception) -> bool:
    """Tell whether an error says that another rank ended."""
    from ..training.parallel import lost

    return isinstance(error, RuntimeError) and lost(error)


def _again(arguments: Sequence[str]) -> str:
    program = ["torchrun", "...", "-m", "multigrain.cli"] if _rank() else ["multigrain"]
    command = shlex.join([*program, *(a for a in arguments if a != "--no-resume")])
    return f"what is done is kept, and this goes on from there: {command}"


def _rank() -> str:
    """Name this rank, where a launcher started several."""
    return f"rank {os.environ.get('RANK', '')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


class _Warnings:
    """Printer of warnings, each in one line, and once: one that differs in numbers alone is not repeated."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def show(self, message: Warning | str, category: type[Warning], *_: object) -> None:
        if (kind := re.sub(r"\d+", "", str(message))) not in self.said:
            self.said.add(kind)
            print(f"multigrain: warning: {_one_line(message)}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"multigrain: error: {_one_line(message)}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        "multigrain",
        description="Video-text retrieval by many grains: train, evaluate, search, see why.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"multigrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, allow_abbrev=False, description=description)

    demo = command(
        "demo",
        "the whole job on pairs that it generates",
        "Generate video-sentence pairs, train a small X-CLIP on them, evaluate, write a page of pictures.",
    )
    demo.add_argument("--quick", action="store_true", help="much smaller, about a minute; much worse figures")
    demo.add_argument("--seed", type=_natural, default=0, help="of the worlds, the split and the training (default 0)")
    demo.set_defaults(config="demo", trust=[])
    _prepare_options(command("prepare", "a manifest from a data set's annotation files", _PREPARE))
    train = command("train", "train a model from a config", f"Train from a YAML config. {_OVERRIDES}")
    evaluate = command(
        "evaluate",
        "evaluate what `train` left, a checkpoint, or saved features",
        "Evaluate the model in OUT, or --model, on the test split of the config; or --text and --video features that "
        "Features.save wrote, which --model scores, or else the mean of X-CLIP's four grains. Settings of a config may "
        "follow, not with features: --data.manifest=test.jsonl --device=cpu --model.aggregator=max_max",
    )
    names = "a YAML file, or the name of a config of the package"
    train.add_argument("--config", required=True, help=names)
    evaluate.add_argument("--config", help=f"{names} (default OUT/config.json, which `train` wrote)")
    for made in (demo, train):
        made.add_argument("--no-resume", action="store_true", help="start anew, whatever OUT holds")
    for made in (demo, train, evaluate):
        made.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
        made.add_argument("--cache", help="folder of the generated pairs (default: that of the config)")
        least = _positive if made is demo else _natural
        made.add_argument("--workers", type=least, help="processes that generate or read pairs")
    evaluate.add_argument("--model", help=f"{_MODEL} (default: that of OUT)")
    evaluate.add_argument("--text", help="a file of text features")
    evaluate.add_argument("--video", help="a file of video features")
    evaluate.add_argument("--targets", help="with --text: a JSON list, the video of each text, counted from 0")
    evaluate.add_argument("--protocol", help="with --text: diagonal (the default), all_captions or group_max")
    evaluate.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a page of the results too: one HTML file (default OUT/index.html; BabyAI runs always have it)",
    )
    evaluate.add_argument(
        "--hubness",
        choices=TRANSDUCTIVE,
        metavar="CORRECTION",
        help=f"{', '.join(TRANSDUCTIVE)}: correct the scores by those of the other queries, each direction by its own "
        "(transductive: it needs the whole test at once), into OUT/CORRECTION. QB-Norm, which needs a bank of training "
        "queries instead, is multigrain.hubness.dynamic_inverted_softmax",
    )
    extract = command("extract", "features of videos, to search", "Encode videos into OUT, in shards; resumable.")
    _extract_options(extract)
    search = command("search", "find videos by a sentence", "Print the best videos of a folder of features.")
    search.add_argument("sentence")
    search.add_argument("--in", dest="features", type=Path, required=True, help="folder that `extract` wrote")
    search.add_argument("--model", help=f"{_MODEL}: the one that made the features")
    explain = command("explain", "why a sentence and a video have their score", _EXPLAIN)
    explain.add_argument("--model", required=True, help=_MODEL)
    explain.add_argument("--video", help="a video file or a folder of frames")
    explain.add_argument("--pair", type=_natural, metavar="N", help="or a pair of the run's test split, from 0 on")
    explain.add_argument("--text", help="the sentence (default with --pair: its own)")
    explain.add_argument("--out", type=Path, help="a .png or .html file to write (default explain.png)")
    explain.add_argument("--fps", type=float, default=1.0, help="candidate frames per second of --video (default 1)")
    explain.add_argument("--cache", help="with --pair: folder of the generated pairs (default: that of the run)")
    for made in (train, evaluate, extract, search, explain):
        made.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="PACKAGE",
            help="import a package of yours, whose aggregators settings may then name; may be given several times",
        )
    for made in (evaluate, extract, search, explain):
        made.add_argument("--architecture", help="of a file of CLIP: openai, or an open_clip name such as ViT-B-32")
    search.add_argument("-k", type=_positive, default=10, help="how many (default 10)")
    return parser


_MODEL = "folder of a model or of a run, or a checkpoint of X-CLIP's code or of CLIP"
_OVERRIDES = "Any setting of the config may follow: --seed=1 --model.frame_source=raw --data.pairs=4000"
_EXPLAIN = (
    "Draw the frames of a video against the words of a sentence: similarities, where the attention lies, and each "
    "grain's part in the score."
)
_PREPARE = (
    "Read the annotation files of a data set as CLIP4Clip and X-CLIP use them, find its videos, write a manifest."
)


def _prepare_options(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument("name", help="msrvtt, msvd, lsmdc, didemo or activitynet")
    prepare.add_argument("--annotations", type=Path, required=True, help="folder of the annotation files")
    prepare.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    prepare.add_argument("--out", type=Path, required=True, help="the manifest to write")
    prepare.add_argument("--variant", help="of the split: 9k or 7k for msrvtt")
    prepare.add_argument("--val", type=_natural, help="training videos to validate on, where there is no such split")
    prepare.add_argument("--seed", type=_natural, default=0, help="of their choice (default 0)")
    prepare.add_argument("--strict", action="store_true", help="stop at the first clip without a video file")


def _extract_options(extract: argparse.ArgumentParser) -> None:
    extract.add_argument("videos", nargs="+", help="video files, or folders of them")
    extract.add_argument("--model", required=True, help=_MODEL)
    extract.add_argument("--out", type=Path, required=True, help="folder to write")
    extract.add_argument("--fps", type=float, default=1.0, help="candidate frames per second (default 1)")
    extract.add_argument("--max-frames", type=_positive, help="frames of a video (default: the model's)")
    extract.add_argument("--batch-size", type=_positive, default=16, help="videos at a time (default 16)")
    extract.add_argument("--workers", type=_positive, help="threads that decode (default 2)")
    extract.add_argument("--strict", action="store_true", help="stop at the first video that cannot be read")
    extract.add_argument("--no-resume", action="store_true", help="start anew, whatever OUT holds")


def _natural(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _integer(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text[:40]!r}")
    return int(text)


def _one_line(error: BaseException | str) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    if isinstance(error, OSError) and error.errno is not None and isinstance(error.filename, str | bytes):
        message = f"{os.fsdecode(error.filename)}: {str(error.strerror).lower()}"
    if isinstance(error, RecursionError):
        message = f"expected values that are nested less deeply ({error})"
    if _full(error):
        message = f"not enough memory (smaller batches need less) {error}"
    # The library's remedy in the words of the command line.
    text = str(message).replace("resume=False", "--no-resume").replace("out_dir", "--out")
    line = printable(" ".join(text.split())) or type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _say(line: str, code: int) -> int:
    print(f"multigrain: {_rank()}{line}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
