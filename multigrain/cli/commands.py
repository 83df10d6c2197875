"""Commands of the command line; main.py has their options."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import checks, files, training
from ..distributed.collectives import is_rank_zero
from ..evaluation.results import write_results
from ..evaluation.tables import in_words
from ..metrics import PROTOCOLS
from ..models import ModelConfig
from ..tokens import Features
from ..training import parallel
from ..training.config_files import find_config
from . import runs
from .console import Bars, print_evaluation
from .runs import Run

if TYPE_CHECKING:
    from ..data.pairs import Data
    from ..models import XCLIP
    from ..training import Evaluation


_CHOSEN = "on the validation split; the test split was scored once, at the end, and decided nothing"
_QUICK = ("--data.pairs=1000", "--data.single=2500", "--data.val=50", "--data.test=100", "--validation_pairs=50")
_QUICK_NOTE = "This is the one-minute version, on few pairs: it shows that everything runs, not what can be learned."


def run_demo(options: argparse.Namespace, _: list[str]) -> None:
    """Train and evaluate on generated pairs with the settings of configs/demo.yaml."""
    options.out = options.out or Path("runs", "demo-quick" if options.quick else "demo")
    overrides = [f"--seed={options.seed}", f"--data.seed={options.seed}"]
    overrides += [*_QUICK, "--stages.1.epochs=5"] if options.quick else []
    run = _run(options, overrides)
    run.title, run.note, run.chosen = "multigrain demo", _QUICK_NOTE if options.quick else "", _CHOSEN
    with parallel.launched(training.device(run.config.device), run.config.timeout), parallel.locked(run.out):
        training.check(run.config)
        data = runs.load(run)
        model = runs.fit(run, data)
        _report(run, model, data, runs.evaluate(run, model, data.test), run.results / "index.html")


def run_prepare(options: argparse.Namespace, _: list[str]) -> None:
    """Make a manifest of annotation files and videos."""
    from ..data.prepare import prepare

    optional = {"variant": options.variant, "val": options.val}
    report = prepare(
        options.name,
        options.annotations,
        options.videos,
        options.out,
        seed=options.seed,
        strict=options.strict,
        **{name: value for name, value in optional.items() if value is not None},
    )
    print(report)


def run_train(options: argparse.Namespace, overrides: list[str]) -> None:
    """Load pairs and train on them."""
    run = _run(options, overrides)
    with parallel.launched(training.device(run.config.device), run.config.timeout), parallel.locked(run.out):
        training.check(run.config)
        runs.fit(run, runs.load(run))
        _print(f"Time: {run.clock}")
        _print(f"Trained {run.out / 'model'}; next: {shlex.join(['multigrain', 'evaluate', '--out', str(run.out)])}")


def run_evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluate the test split of a run, or features that were saved."""
    if options.report is not None:
        runs.require("matplotlib", "viz")
    if options.text is not None or options.video is not None:
        out = options.out or Path("runs", "features")
        out = out if options.hubness is None else out / options.hubness
        with parallel.launched(torch.device("cpu")), parallel.locked(files.open_folder(out)):
            _evaluate_features(options, overrides, out)
        return
    if options.targets is not None or options.protocol is not None:
        raise ValueError("targets, protocol: expected with --text and --video; a run has --data.protocol=")
    if options.model is None:
        _only_of_evaluation(overrides)
    elif own := [override for override in overrides if override.startswith("--model.")]:
        raise ValueError(f"{own[0]}: expected no setting of the model beside --model, which has its own")
    run = _run(options, overrides)
    with parallel.launched(training.device(run.config.device), run.config.timeout):
        if options.model is None:
            run, model = runs.restore(run)
        else:
            model = _model(options)
        if options.hubness is not None:
            run.results /= options.hubness
        with parallel.locked(files.open_folder(run.results)):
            data = runs.load(run, ["test"])
            evaluation = runs.evaluate(run, model, data.test, options.hubness)
            # Pictures explain scores by grains, which corrected ones and those of recipes are not.
            explained = options.hubness is None and not model.recipe.name
            pictured = explained and isinstance(run.config.data, training.BabyAIConfig)
            page = Path(options.report or run.results / "index.html")
            _report(run, model, data, evaluation, page if pictured or options.report is not None else None)


def _report(run: Run, model: XCLIP, data: Data, evaluation: Evaluation, page: Path | None = None) -> None:
    """Print the results of a test split and write them, and a page of them where one is asked for, to their files."""
    sentences, names, metadata = data.test.sentences, data.test.names, getattr(data, "metadata", None)
    texts, videos = [sentences[row] for row in evaluation.texts], [names[row] for row in evaluation.videos]
    about = {} if metadata is None else {"data": metadata}
    about = {"seconds": run.clock.seconds, **about, "settings": dataclasses.asdict(run.config)}
    protocol = run.config.data.protocol
    print_evaluation(evaluation, protocol)
    write_results(run.results, evaluation, protocol, texts, videos, **about)
    if page is not None:
        from .pages import write_page

        evaluation = evaluation.gathered()
        if is_rank_zero():
            with run.clock.phase("page"):
                write_page(run, model, data, evaluation, page)
    print(f"Time: {run.clock}")
    _print(f"Wrote {run.results / 'metrics.json'} and {run.results / 'rankings.jsonl'}")
    if page is not None:
        _print(f"Open {page}")


def _targets(path: str, texts: int) -> torch.Tensor:
    """Read the video of each text from a JSON list."""
    try:
        values = files.read_json(path, "targets")
    except ValueError as error:
        raise ValueError(f"targets: expected a JSON list: {error}") from error
    if not isinstance(values, list) or not all(type(value) is int for value in values) or len(values) != texts:
        raise ValueError(f"targets: expected a JSON list of {texts} integers, one for each text, in {path}")
    return torch.tensor(values)


def _only_of_evaluation(overrides: list[str]) -> None:
    """Check that overrides set nothing that the training decided."""
    for override in overrides:
        if not override.startswith(
            ("--data.", "--device=", "--workers=", "--timeout=", *(f"--model.{name}" for name in runs.SCORING))
        ):
            raise ValueError(
                f"{override}: evaluation takes settings of data, device, workers, timeout, model.grains, "
                f"model.aggregator and model.weights; all others are those of the training"
            )


def _read_beside_a_recipe(model: ModelConfig, overrides: list[str]) -> None:
    """Check that overrides set nothing that a recipe brings."""
    for override in overrides:
        name = override.partition("=")[0].removeprefix("--model.")
        if model.recipe is not None and name.startswith(_BROUGHT) and name != "temporal.max_frames":
            raise ValueError(
                f"{override}: expected no such setting with the recipe {model.recipe.name!r}, which brings its own; "
                "leave it out, or append --model.recipe=null to train without the recipe"
            )


_BROUGHT = (*runs.SCORING, "frame_source", "temporal.")  # see ModelConfig


def _evaluate_features(options: argparse.Namespace, overrides: list[str], out: Path) -> None:
    if options.text is None or options.video is None:
        raise ValueError("features: expected --text FILE and --video FILE")
    if overrides or options.config is not None:
        given = " ".join([*([] if options.config is None else ["--config"]), *overrides])
        raise ValueError(
            f"features: expected no --config and no setting of one, got {given}: --model scores them, or the mean of "
            "X-CLIP's four grains; in Python, multigrain.training.evaluate_features(text, video, scorer) takes any"
        )
    protocol = checks.choice("--protocol", options.protocol or "diagonal", PROTOCOLS)
    if options.hubness is not None:
        training.check_hubness(options.hubness)
    text, video = (Features.load(path) for path in (options.text, options.video))
    targets = None if options.targets is None else _targets(options.targets, len(text))
    scorer = ModelConfig().scorer()
    if options.model is not None:
        model = _model(options).cpu()
        scorer = model.recipe if model.recipe.name else model.scorer
        if options.hubness is not None:
            training.check_hubness(options.hubness, scorer)
    if is_rank_zero():
        _print(f"Scored by {in_words(scorer)}")
    with Bars() as bars:
        evaluation = training.evaluate_features(text, video, scorer, targets, protocol, bars.counter("scoring grains"))
    if options.hubness is not None:
        evaluation = training.corrected(evaluation, options.hubness, protocol)
    names = [[str(i) for i in rows] for rows in (evaluation.texts, evaluation.videos)]
    print_evaluation(evaluation, protocol)
    write_results(out, evaluation, protocol, *names)
    if options.report is not None:
        from .pages import write_features_page

        evaluation, page = evaluation.gathered(), Path(options.report or out / "index.html")
        if is_rank_zero():
            write_features_page(evaluation, text, video, scorer, page)
        _print(f"Open {page}")
    _print(f"Wrote {out / 'metrics.json'} and {out / 'rankings.jsonl'}")


def run_explain(options: argparse.Namespace, _: list[str]) -> None:
    """Draw the picture of one pair."""
    if (options.video is None) == (options.pair is None):
        raise ValueError("expected --video FILE or --pair NUMBER, and not both")
    out = options.out or Path("explain.png")
    if out.suffix.lower() not in (".png", ".html"):
        raise ValueError(f"--out: expected a name that ends with .png or .html, got {out}")
    runs.require("matplotlib", "viz")
    from ..report.pair_page import PairPage

    with files.lock(files.open_folder(out.parent, "--out") / out.name):
        if options.pair is not None:
            sentence, video, what = runs.numbered_pair(options.model, options.pair, options.cache, options.trust)
        elif options.text is None:
            raise ValueError("--text: expected a sentence beside --video")
        else:
            sentence, video, what = options.text, options.video, Path(options.video).name
        page = PairPage.of(_model(options), options.text or sentence, video, what, options.fps)
        print(page.table())
        _print(f"Open {page.write(out)}")


def run_extract(options: argparse.Namespace, _: list[str]) -> None:
    """Extract features of videos, in shards."""
    from ..data.video import Sampling
    from ..gallery.extraction import extract

    with files.lock(files.open_folder(options.out)), Bars() as bars:
        model = _model(options)
        sampling = Sampling(options.fps, options.max_frames or model.max_frames)
        report = extract(
            model,
            options.videos,
            options.out,
            sampling=sampling,
            batch_size=options.batch_size,
            workers=options.workers or 2,
            strict=options.strict,
            resume=not options.no_resume,
            progress=bars.counter("videos"),
            model_path=options.model,
        )
    print(report)


def run_search(options: argparse.Namespace, _: list[str]) -> None:
    """Print the best videos of a folder of features for a sentence."""
    from ..gallery.collection import Collection
    from ..gallery.query import search

    if options.model is None:
        made_by = Collection.open(options.features).model_path
        noted = "do not say what made them" if made_by is None else f"say: --model {shlex.quote(str(made_by))}"
        raise ValueError(f"model: expected --model, the one that made the features; they {noted}")
    model = _model(options)
    found = search(model, options.sentence, options.features, k=options.k)
    for place, result in enumerate(found, 1):
        grains = "  ".join(f"{name} {score:.3f}" for name, score in result.by_grain.items())
        _print(f"{place:3}  {result.score:.4f}  {result.path}  {grains}")


def _print(line: str) -> None:
    """Print a line with names of others in it."""
    print(checks.printable(line))


def _model(options: argparse.Namespace) -> XCLIP:
    return runs.load_model(options.model, options.architecture, options.trust)


def _run(options: argparse.Namespace, overrides: list[str]) -> Run:
    """Build the run that a command line describes, and check it."""
    own = options.config is None
    if own:
        if options.out is None:
            raise ValueError("expected --config, --out or both")
        options.config = str(options.out / "config.json")
        if not Path(options.config).is_file():
            raise FileNotFoundError(f"out: expected the folder of a finished training, got {options.out}; train first")
    if options.cache is not None:
        overrides = [*overrides, f"--data.cache={options.cache}"]
    config = training.load_config(options.config, overrides, options.trust)
    if own:
        runs.check_cache(config, options.out, overrides)
    if options.command == "train":
        _read_beside_a_recipe(config.model, overrides)
    if isinstance(config.data, training.ClipsConfig):
        # Absolute, so that the run can be evaluated from anywhere.
        data = dataclasses.replace(config.data, manifest=os.path.abspath(config.data.manifest))
        workers = config.workers if options.workers is None else options.workers
        config = dataclasses.replace(config, data=data, workers=workers)
    name = Path(options.config).stem if options.out is None else options.out.name
    resume = not getattr(options, "no_resume", False)
    source = files.read_text(find_config(options.config)) + "".join(f"# {override}\n" for override in overrides)
    out = options.out or Path("runs", name)
    run = Run(config, out, source, options.workers, resume, f"multigrain {name}", trust=options.trust)
    runs.check(run)
    return run
