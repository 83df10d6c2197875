"""Training and evaluation on two gloo processes: as on one, and whatever ends them, nothing is lost."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch
import yaml

import multigrain as mg
from multigrain import training
from multigrain.cli import main
from multigrain.evaluation.merged import merged_metrics
from multigrain.evaluation.results import write_results
from multigrain.models import XCLIP, ModelConfig, RecipeConfig
from multigrain.training import Evaluation, Progress, checkpoint, parallel
from multigrain.training.data import batches
from multigrain.training.objectives import frame_features
from tests import test_training_clips as clips
from tests.models.clips import saved, tiny_clip
from tests.test_end_to_end import dataset, settings
from tests.test_training import CONFIG, DATA, EVENTS, Paint, lines
from tests.worlds import World, context

context.set_forkserver_preload(["tests.test_training_clips", "tests.test_training", "torch._dynamo", "pytest"])
SECONDS = 60  # within which all ranks have ended
PROTOCOLS = ("diagonal", "all_captions", "group_max")
# Without dropout, whose random numbers are those of a rank.
PLAIN = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=0.0))
FROZEN = dataclasses.replace(
    PLAIN,
    stages=[PLAIN.stages[0], dataclasses.replace(PLAIN.stages[1], freeze_vision=True, distinct=True, batch_size=7)],
)
# Queues of whole batches: which part of one leaves first depends on the ranks.
MOMENTUM = dataclasses.replace(
    PLAIN, model=dataclasses.replace(PLAIN.model, recipe=RecipeConfig("wenlan", {"queue_size": 16}))
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(2, tmp_path_factory.mktemp("world")) as two:
        yield two


def trained(rank: int, size: int, config: training.TrainConfig, data: Any, out: Path) -> tuple[list[float], Any]:
    """The loss of each step, and the state of the model."""
    losses: list[float] = []
    model = training.train(config, data, out, progress=lambda event: losses.append(event.loss))
    return losses, model.state_dict()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def assert_as_one(together: Sequence[Any], alone: Any) -> None:
    """All ranks have the same weights, since they take the same steps, and losses close to those of one process.

    Its weights are not looked at: where a gradient is zero but for rounding, as that of the biases of keys, AdamW
    makes steps of it. Losses, from 1 to 4, differed by at most 5e-6 in the 20 steps.
    """
    torch.testing.assert_close(torch.tensor(together[0][0]), torch.tensor(alone[0]), atol=1e-4, rtol=0)
    for losses, model in together[1:]:
        assert losses == together[0][0]
        assert same(model, together[0][1])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(FROZEN, id="frozen tower, distinct, odd batches"),
        pytest.param(MOMENTUM, id="momentum encoders and queues"),
    ],
)
def test_two_ranks_train_what_one_does(world: World, tmp_path: Path, config: training.TrainConfig):
    alone = trained(0, 1, config, DATA, tmp_path / "one")
    together = world(trained, config, DATA, tmp_path / "two")
    assert_as_one(together, alone)
    one, two = (lines(tmp_path / name) for name in ("one", "two"))
    assert [line["position"] for line in two] == [line["position"] for line in one]
    assert two[-1]["validation"].keys() == one[-1]["validation"].keys()
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["ranks"] == 2


def kept_features(rank: int, size: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = XCLIP.from_config(CONFIG.model, ["red", "green", "blue", "white", "then"])
    return frame_features(model, DATA.train, max_frames=4, batch_size=7)


def test_features_of_a_frozen_tower_are_those_of_one_process(world: World):
    alone = kept_features(0, 1)
    for together in world(kept_features):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)  # of unit length, from batches of other sizes


def test_videos_that_one_rank_cannot_read(world: World, tmp_path: Path):
    """Where a rank's whole share of a batch is broken, it takes one of the other's."""
    stage = dataclasses.replace(clips.CONFIG.stages[0], batch_size=3, epochs=5)
    config = dataclasses.replace(clips.CONFIG, stages=[stage])
    shares = [rows[rank::2] for seed in range(5) for rows in batches([""] * 10, 3, 1, seed) for rank in (0, 1)]
    assert any(set(share) <= {3, 4, 5} for share in shares)
    (losses, model), other = world(trained, config, clips.data(broken=True), tmp_path)
    assert len(losses) == 5 * (3 + 1)
    assert losses == other[0]
    assert all(torch.equal(other[1][name], value) for name, value in model.items())
    assert (tmp_path / "broken.txt").read_text() == "video2.mp4: is broken\n"


EVALUATED = (
    (False, [0, 1, 3, 6], "diagonal"),
    (False, None, "all_captions"),
    (True, None, "group_max"),
    (True, [0, 3, 4], "all_captions"),  # one video is left, and one rank has none
)


def evaluated(rank: int, size: int, state: Any, out: Path) -> list[tuple[Evaluation, Evaluation]]:
    """Of a model and of features, with ties and with several captions of a video: this rank's share and the whole.

    The files of one of them are in `out`.
    """
    model = XCLIP.from_config(clips.MODEL).eval()
    model.load_state_dict(state)
    found = [
        training.evaluate(model, clips.Noise(broken), rows, protocol=protocol, batch_size=2)
        for broken, rows, protocol in EVALUATED
    ]
    write(out, found[1])
    generator = torch.Generator().manual_seed(3)
    text = mg.Features(sentence=torch.randint(-1, 2, (60, 3), generator=generator).double())
    video = mg.Features(video=torch.randint(-1, 2, (21, 3), generator=generator).double())
    targets = torch.cat([torch.arange(21), torch.randint(0, 21, (39,), generator=generator)])
    scorer = mg.MultiGrain(mg.VideoSentence())
    for protocol in PROTOCOLS:
        own = None if protocol == "diagonal" else targets
        found.append(training.evaluate_features(text[: 60 if own is not None else 21], video, scorer, own, protocol))
    return [(part, part.gathered()) for part in found]


def write(out: Path, found: Evaluation) -> None:
    """The files of the second of EVALUATED."""
    write_results(out, found, "all_captions", *([f"item {i}" for i in rows] for rows in (found.texts, range(4))))


def test_shares_of_an_evaluation_give_the_metrics_of_the_whole(world: World, tmp_path: Path):
    """A share is a product of another shape than the whole, and a processor may round it otherwise and then rank two
    texts otherwise that are nearly as good. So scores are close to those of one process, metrics and rankings are
    exactly those of the scores that the ranks have, and all ranks have the same metrics of each grain.
    """
    torch.manual_seed(0)
    state = XCLIP.from_config(clips.MODEL).state_dict()
    alone = evaluated(0, 1, state, tmp_path / "one")
    together = world(evaluated, state, tmp_path / "two")
    protocols = (*(protocol for *_, protocol in EVALUATED), *PROTOCOLS)
    for (one, _), protocol, *found in zip(alone, protocols, *together, strict=True):
        shares = [share for share, _ in found]
        order = torch.tensor([row for share in shares for row in share.texts]).argsort()
        scores = torch.cat([share.scores["all"] for share in shares])[order]
        expected = mg.retrieval_metrics(scores, None if protocol == "diagonal" else one.targets, protocol)
        for share in shares:
            assert share.metrics.keys() == one.metrics.keys()
            assert share.metrics == shares[0].metrics
            assert share.metrics["all"] == expected
        for share, whole in found:
            assert (share.videos, share.broken, whole.texts) == (one.videos, one.broken, one.texts)
            assert torch.equal(whole.targets, one.targets)
            torch.testing.assert_close(whole.scores["all"], one.scores["all"], atol=1e-5, rtol=0)
    write(tmp_path / "again", together[0][1][1])
    again, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("again", "two"))
    assert {**two, "environment": None} == {**again, "environment": None}
    assert rankings(tmp_path / "two") == rankings(tmp_path / "again")


def rankings(out: Path) -> list[dict[str, Any]]:
    """Those written there, with what was found from the best on; of equal scores, in any order."""
    lines = [json.loads(line) for line in (out / "rankings.jsonl").read_text().splitlines()]
    return [{**line, "found": sorted(line["found"], key=lambda x: (-x["score"], x["item"]))} for line in lines]


def errors(rank: int, size: int) -> list[str]:
    """What is wrong is said on every rank."""
    scores = torch.zeros(3, 6)
    scores[1, 2] = torch.nan if rank else 0.0
    targets = torch.arange(3) + 3 * rank
    one = SimpleNamespace(**{**vars(DATA), "single": Paint(1, 0)})
    nothing = clips.Noise(broken=True)
    model = XCLIP.from_config(clips.MODEL)
    text, video = mg.Features(sentence=torch.zeros(2, 3)), mg.Features(video=torch.zeros(3, 3))
    found = []
    for wrong in (
        lambda: merged_metrics(scores, targets),
        lambda: merged_metrics(torch.zeros(3, 6), targets * 0, "group_max"),
        lambda: merged_metrics(torch.zeros(3, 6), targets * 0),
        lambda: training.evaluate_features(text, video, model.scorer),
        lambda: training.train(PLAIN, one, "/dev/null/run"),
        lambda: training.train(PLAIN, one, os.environ["PARALLEL_OUT"]),
        lambda: training.evaluate(model, nothing, [3, 4], protocol="all_captions"),
        lambda: training.check_hubness("sinkhorn"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError)) as error:
            wrong()
        found.append(str(error.value))
    return found


def test_what_is_wrong_is_said_on_every_rank(world: World, tmp_path: Path):
    world(_set, "PARALLEL_OUT", str(tmp_path))
    one, two = world(errors)
    assert one == two
    for message, expected in zip(
        one,
        (
            "rank 1: ",
            "got none for video 1",
            "expected one text a video under 'diagonal', got 6 texts and 6 videos",
            "protocol: expected one text a video under 'diagonal', got 2 texts and 3 videos",
            "out_dir: expected a folder that can be written to",
            "batch_size: expected at least one pair for each of 2 ranks, got batches of 1 in stage 'towers'",
            "no video could be read; the first: video2.mp4: is broken",
            "hubness: expected one process, since sinkhorn needs the scores of all texts at once, got 2",
        ),
        strict=True,
    ):
        assert expected in message


def _set(rank: int, size: int, name: str, value: str) -> None:
    os.environ[name] = value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_merged_metrics_are_the_metrics(protocol: str):
    generator = torch.Generator().manual_seed(0)
    for texts, videos in ((5, 5), (9, 4), (30, 7)):
        texts = videos if protocol == "diagonal" else texts
        scores = torch.randint(0, 4, (texts, videos), generator=generator).double()
        targets = torch.cat([torch.arange(videos), torch.randint(0, videos, (texts - videos,), generator=generator)])
        expected = mg.retrieval_metrics(scores, None if protocol == "diagonal" else targets, protocol)
        assert merged_metrics(scores, targets, protocol) == expected


def test_distinct_batches_have_no_id_twice():
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(0, 30, (200,), generator=generator).tolist()
    sentences = ["a " * (i % 7) for i in range(200)]
    for bucket in (1, 4):
        cut = batches(sentences, 8, bucket, 3, ids)
        assert cut == batches(sentences, 8, bucket, 3, ids) != batches(sentences, 8, bucket, 4, ids)
        assert all(len(rows) == 8 == len({ids[row] for row in rows}) for rows in cut)
        seen = Counter(row for rows in cut for row in rows)
        assert max(seen.values()) == 1
        assert len(seen) > 200 - 2 * 8  # of 30 videos with 2 to 13 captions
    assert {len(rows) for rows in batches(sentences, 64, 1, 3, ids)} == {len(set(ids))}  # no more than there are ids
    assert batches(sentences, 8, 1, 3) == batches(sentences, 8, 1, 3, None)


def test_captions_that_no_batch_has_room_for_are_reported(tmp_path: Path):
    stage = dataclasses.replace(clips.CONFIG.stages[0], batch_size=4, epochs=1, distinct=True)
    config = dataclasses.replace(clips.CONFIG, stages=[stage])
    with pytest.warns(UserWarning, match=r"stage 'only': 6 of 10 pairs are left out of this epoch"):
        training.train(config, clips.data(), tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The end of a process


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(rank: int, size: int, config: training.TrainConfig, out: Path, how: str, who: int, event: int) -> str:
    """Train; rank `who` ends at an event. What this rank says in the end."""
    seen = 0

    def end(_: Progress) -> None:
        nonlocal seen
        seen += 1
        if rank != who or seen != event:
            return
        if how == "kill":
            kill()
        elif how == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif how == "save":
            torch.save = _half_a_file
        elif how == "replace":
            os.replace = kill

    try:
        training.train(config, DATA, out, progress=end)
    except SystemExit as leaving:
        return f"left with {leaving.code}"
    except RuntimeError as error:
        return f"lost: {parallel.lost(error)}"
    return "done"


def _half_a_file(state: Any, file: BinaryIO) -> None:
    file.write(b"PK half a checkpoint")
    file.flush()
    kill()


def ends(folder: Path, function: Any, *arguments: Any) -> list[Any]:
    """What a function returns in each of two processes of their own; "killed" for one that does not return."""
    folder.mkdir()
    said: list[Any] = []
    with World(2, folder, timedelta(seconds=SECONDS)) as two:
        for end in two.ends:
            end.send((function, arguments))
        for end in two.ends:
            assert end.poll(SECONDS), "a rank goes on without the other"
            try:
                said.append(end.recv()[1])
            except EOFError:
                said.append("killed")
    return said


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, world(trained, CONFIG, DATA, folder)[0][1]


@pytest.mark.parametrize(
    ("how", "who", "event", "says"),
    [
        pytest.param("kill", 0, 1, ["killed", "lost: True"], id="rank 0 in the first step"),
        pytest.param("kill", 1, 10, ["lost: True", "killed"], id="rank 1 in the second stage"),
        pytest.param("save", 0, 5, ["killed", "lost: True"], id="in the middle of writing a checkpoint"),
        pytest.param("replace", 0, 13, ["killed", "lost: True"], id="before a checkpoint has its name"),
        pytest.param("term", 1, 6, ["left with 143"] * 2, id="SIGTERM to one"),
    ],
)
def test_a_run_that_was_ended_resumes_to_the_very_same_weights(
    world: World, undisturbed: tuple[Path, Any], tmp_path: Path, how: str, who: int, event: int, says: list[str]
):
    config = dataclasses.replace(CONFIG, keep=2, checkpoint_seconds=600 if how == "term" else 0)
    started = time.monotonic()
    assert ends(tmp_path / "store", train_until, config, tmp_path / "run", how, who, event) == says
    assert time.monotonic() - started < SECONDS
    if event > 1:
        checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint.pt", _settings(undisturbed[0]))
    losses, model = world(trained, config, DATA, tmp_path / "run")[0]
    # Rank 1 may die when rank 0 has not yet written its last checkpoint; SIGTERM is agreed on in the next step.
    assert EVENTS - len(losses) in {"term": (event, event + 1)}.get(how, (event - 2, event - 1, event))
    assert all(torch.equal(model[name], value) for name, value in undisturbed[1].items())
    assert lines(tmp_path / "run") == lines(undisturbed[0])
    assert not list((tmp_path / "run").glob("checkpoint*.tmp"))
    before = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint.1.pt", _settings(undisturbed[0]))
    assert (
        before["position"]
        != checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint.pt", _settings(undisturbed[0]))["position"]
    )


def _settings(folder: Path) -> dict[str, Any]:
    return json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["settings"])


def test_a_run_goes_on_with_another_number_of_ranks(world: World, tmp_path: Path):
    alone = trained(0, 1, PLAIN, DATA, tmp_path / "one")

    def interrupt(event: Progress) -> None:
        if event.stage == "grains" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(PLAIN, DATA, tmp_path / "two", progress=interrupt)
    rest = world(trained, PLAIN, DATA, tmp_path / "two")
    assert_as_one(rest, (alone[0][-len(rest[0][0]) :], None))
    assert [line["position"] for line in lines(tmp_path / "two")] == [
        line["position"] for line in lines(tmp_path / "one")
    ]


# ---------------------------------------------------------------------------------------------------------------------
# torchrun on the command line


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PARALLEL_OUT"}
    return subprocess.Popen(
        [*command, "-m", "multigrain.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def until(process: subprocess.Popen[str], text: str) -> str:
    """What it says on stderr up to a line with this text."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    pytest.fail(f"{text!r} was never said:\n{said}")


def command(rank: int, size: int, *arguments: str) -> tuple[int, str, str]:
    """A command line on this rank: its exit code and what it says."""
    output, error = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(error):
        code = main(arguments)
    return code, output.getvalue(), error.getvalue()


def written_by_command(rank: int, size: int, folder: Path, *arguments: str) -> set[str]:
    """Files below a folder that a command line writes on this rank, but for those that show whether it may."""
    found: set[str] = set()

    def note(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and str(details[0]).startswith(str(folder)) and details[2] & (os.O_WRONLY | os.O_RDWR):
            found.add(re.sub(r"\.\d+-\w{8}\.tmp$", "", Path(details[0]).name))

    sys.addaudithook(note)  # which stays: `found` is copied
    assert command(rank, size, *arguments)[0] == 0
    return {name for name in found if not name.startswith((".write-", ".lock"))}


def killed_in_command(rank: int, size: int, *arguments: str) -> tuple[int, str, str]:
    """As `command`; rank 1 is killed in its fourth step."""
    clip, steps = torch.nn.utils.clip_grad_norm_, itertools.count(1)
    if rank == 1:
        torch.nn.utils.clip_grad_norm_ = lambda *given: clip(*given) if next(steps) < 4 else kill()
    return command(rank, size, *arguments)


def test_torchrun_on_the_command_line(world: World, tmp_path: Path):
    """SIGTERM to the launcher while a reader runs, SIGKILL to a rank; then the run goes on, and is evaluated."""
    weights = saved(tiny_clip(text_cfg={"width": 64, "heads": 1}), tmp_path / "clip.pt")
    annotations, videos, manifest = dataset(tmp_path, "msrvtt")
    (videos / "video2.mp4").write_bytes(b"no video")
    places = {"annotations": annotations, "videos": videos, "out": manifest}
    prepare = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    assert main(["prepare", "msrvtt", *prepare, "--val", "1", "--seed", "4"]) == 0
    values = settings(manifest, weights)
    values["stages"][0] |= {"epochs": 25, "batch_size": 3}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    train = ["train", "--config", str(path), "--out", str(tmp_path / "run")]

    process = torchrun(*train, "--workers", "1")
    until(process, "epoch 3/25")
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=SECONDS)[1]
    assert process.returncode != 0
    for rank in (0, 1):
        line = f"multigrain: rank {rank}: terminated; what is done is kept, and this goes on from there: torchrun ... "
        assert error.count(line) == 1, error

    lost, killed = ends(tmp_path / "store", killed_in_command, *train)
    assert killed == "killed"
    assert lost[0] == 2
    assert re.search(r"multigrain: rank 0: error: .*(gloo|closed).*\n$", lost[2]), lost[2]
    assert "epoch 2/25" not in lost[2]
    assert not (tmp_path / "run" / "model").exists()

    (code, output, error), other = world(command, *train)
    assert (code, other[0]) == (0, 0)
    assert "epoch 25/25" in error
    assert "epoch 3/25" not in error
    assert "1 videos could not be read" in error
    assert "Trained" in output
    evaluate = ["evaluate", "--out", str(tmp_path / "run")]
    page = tmp_path / "run" / "index.html"
    assert world(written_by_command, tmp_path, *evaluate, "--report") == [
        {"index.html", "metrics.json", "rankings.jsonl"}, set(),
    ]  # fmt: skip
    assert "video7010" in page.read_text()
    together = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert main(evaluate) == 0
    alone = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (together["texts"], together["candidates"]) == (alone["texts"], alone["candidates"])
    assert {grain: set(found) for grain, found in together["metrics"].items()} == {
        grain: set(found) for grain, found in alone["metrics"].items()
    }


def test_saved_features_on_the_command_line(world: World, tmp_path: Path):
    """Of scores so far apart that no rounding ranks them otherwise, which may be another one in each share."""
    torch.manual_seed(50)
    text = mg.Features(sentence=torch.randn(7, 8), word=torch.randn(7, 5, 8))
    video = mg.Features(video=torch.randn(7, 8), frame=torch.randn(7, 4, 8))
    scorer = ModelConfig().scorer()
    for scores in (scorer(text, video), *scorer.scores_by_grain(text, video).values()):
        assert min(scores.sort(dim).values.diff(dim=dim).min() for dim in (0, 1)) > 5e-4
    text.save(tmp_path / "text.pt")
    video.save(tmp_path / "video.pt")
    evaluate = ["evaluate", "--text", str(tmp_path / "text.pt"), "--video", str(tmp_path / "video.pt"), "--report"]
    files = {"index.html", "metrics.json", "rankings.jsonl"}
    assert world(written_by_command, tmp_path, *evaluate, "--out", str(tmp_path / "two")) == [files, set()]
    assert main([*evaluate, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("one", "two"))
    assert one == two
    for a, b in zip(rankings(tmp_path / "one"), rankings(tmp_path / "two"), strict=True):
        one, two = ([item.pop("score") for item in line["found"]] for line in (a, b))
        assert two == pytest.approx(one, abs=1e-4)
        assert a == b
    pages = [re.sub(r"\d+\.\d+", "x", (tmp_path / name / "index.html").read_text()) for name in ("one", "two")]
    assert pages[0] == pages[1]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is stopped by SIGSTOP")
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stops_answering_is_named(tmp_path: Path, stopped: int):
    """Rank 0 holds the store here; under torchrun, the launcher does."""
    program = f"""
import os, signal, sys, torch
from multigrain import cli
from multigrain.cli import commands
from multigrain.distributed.collectives import all_gather_object
from multigrain.training import parallel

def run(options, overrides):
    with parallel.launched(torch.device("cpu"), timeout=2):
        all_gather_object(0)
        if parallel.world()[0] == {stopped}:
            os.kill(os.getpid(), signal.SIGSTOP)
        all_gather_object(1)

commands.run_demo = run
sys.exit(cli.main(["demo"]))
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    logs, processes = [tmp_path / str(rank) for rank in range(3)], list[subprocess.Popen[bytes]]()
    for rank, log in enumerate(logs):
        environment = {**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "3"}
        with log.open("wb") as file:
            processes.append(subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=file))
    waiting = [rank for rank in range(3) if rank != stopped]
    try:
        assert [processes[rank].wait(SECONDS) for rank in waiting] == [2, 2]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [logs[rank].read_text() for rank in waiting]
    assert all(line.count("\n") == 1 for line in said), said
    assert any(f"error: rank {stopped} did not answer within 2 seconds" in line for line in said), said
