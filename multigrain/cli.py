"""The command line: multigrain demo | train | evaluate.

An error is one line on stderr and exit code 2 (MULTIGRAIN_TRACEBACK=1 shows where it comes from); Ctrl-C is one line
that says how to go on, and exit code 130. Whatever is slow to import waits until a command needs it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import __version__

if TYPE_CHECKING:
    from .demo import Run

_EXPECTED = (ArithmeticError, ImportError, KeyError, OSError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and options.command == "demo":
        parser.error(f"demo takes no {overrides[0]}")
    try:
        options.run(options, overrides)
    except KeyboardInterrupt:
        again = shlex.join(["multigrain", *(a for a in arguments if a != "--no-resume")])
        return _say(f"interrupted; what is done is kept, and this goes on from there: {again}", 130)
    except _EXPECTED as error:
        if os.environ.get("MULTIGRAIN_TRACEBACK"):
            raise
        return _say(f"error: {_one_line(error)}", 2)
    return 0


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"multigrain: error: {message}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        "multigrain", description="Video-text retrieval by many grains: train, evaluate, see why.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"multigrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="the whole job on pairs that it generates",
        allow_abbrev=False,
        description="Generate video-sentence pairs, train a small X-CLIP on them, evaluate, write a page of pictures.",
    )
    demo.add_argument("--quick", action="store_true", help="much smaller, about a minute; much worse figures")
    demo.add_argument("--seed", type=_natural, default=0, help="of the worlds, the split and the training (default 0)")
    demo.set_defaults(run=_demo)
    train = commands.add_parser(
        "train",
        help="train a model from a config",
        allow_abbrev=False,
        description=f"Train from a YAML config. {_OVERRIDES}",
    )
    train.set_defaults(run=_train)
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate what `train` left, with pictures",
        allow_abbrev=False,
        description=f"Evaluate the model in OUT on the test split and write the page. {_OVERRIDES}",
    )
    evaluate.set_defaults(run=_evaluate)
    names = "a YAML file, or the name of a config of the package: demo"
    train.add_argument("--config", required=True, help=names)
    evaluate.add_argument("--config", help=f"{names} (default OUT/config.json, which `train` wrote)")
    for command in (demo, train):
        command.add_argument("--no-resume", action="store_true", help="start anew, whatever OUT holds")
    for command in (demo, train, evaluate):
        command.add_argument("--out", type=Path, help="folder of the run (default runs/NAME)")
        command.add_argument("--cache", help="folder of the generated pairs (default: that of the config)")
        command.add_argument("--workers", type=_positive, help="processes that generate pairs (default: one per core)")
    return parser


_OVERRIDES = "Any setting of the config may follow: --seed=1 --model.frame_source=raw --data.pairs=2000"


def _demo(options: argparse.Namespace, _: list[str]) -> None:
    from .demo import demo

    out: Path = options.out or Path("runs", "demo-quick" if options.quick else "demo")
    page = demo(
        out,
        quick=options.quick,
        seed=options.seed,
        workers=options.workers,
        cache=options.cache,
        resume=not options.no_resume,
    )
    print(f"Open {page}")


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from . import demo

    run = _run(options, overrides)
    demo.fit(run, demo.generate(run))
    print(f"Time: {run.clock}")
    print(f"Trained {run.out / 'model'}; next: {shlex.join(['multigrain', 'evaluate', '--out', str(run.out)])}")


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    from . import demo

    run = _run(options, overrides)
    run, model = demo.restore(run)
    data = demo.generate(run)
    print(f"Open {demo.show(run, model, data, demo.evaluate(run, model, data))}")


def _run(options: argparse.Namespace, overrides: list[str]) -> Run:
    """The run that a command line describes, checked."""
    from . import demo, training

    if options.config is None:
        if options.out is None:
            raise ValueError("expected --config, --out or both")
        options.config = str(options.out / "config.json")
    if options.cache is not None:
        overrides = [*overrides, f"--data.cache={options.cache}"]
    config = training.load_config(options.config, overrides)
    name = Path(options.config).stem if options.out is None else options.out.name
    resume = not getattr(options, "no_resume", False)
    source = demo.config_text(options.config) + "".join(f"# {override}\n" for override in overrides)
    run = demo.Run(config, options.out or Path("runs", name), source, options.workers, resume, f"multigrain {name}")
    demo.check(run)
    return run


def _natural(text: str) -> int:
    return _integer(text, 0)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _integer(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
    return int(text)


def _one_line(error: BaseException) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    # The library's remedy in the words of the command line.
    text = str(message).replace("resume=False", "--no-resume").replace("out_dir", "--out")
    return " ".join(text.split()) or type(error).__name__


def _say(line: str, code: int) -> int:
    print(f"multigrain: {line}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
