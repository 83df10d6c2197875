from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import multigrain as mg
from multigrain import files, training
from multigrain.data.pairs import Batch, equal_ids
from multigrain.kernels.spec import Unsupported
from multigrain.models import XCLIP, GrainConfig, ModelConfig, RecipeConfig, TemporalConfig, TextConfig, VisionConfig
from multigrain.training import OptimizerConfig, StageConfig, TrainConfig
from multigrain.training.data import batches
from multigrain.training.objectives import frame_features, make_objective
from multigrain.training.optimizer import learning_rate, make_optimizer

COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


class Paint:
    """Videos of plain colours; the sentence names them in order. Two to three real frames of three."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 4, (count,), generator=generator).tolist()
        self.colors = [
            [list(COLORS)[i] for i in torch.randint(0, 4, (length,), generator=generator)] for length in lengths
        ]
        self.sentences = [", then ".join(names) for names in self.colors]
        self.ids = equal_ids(self.sentences)
        self.names = [f"video{i}" for i in range(count)]

    def batch(self, indices: Sequence[int], max_frames: int = 12, seed: int | None = None) -> Batch:
        names = [self.colors[i] if max_frames > 1 else self.colors[i][-1:] for i in indices]
        length = max(map(len, names))
        index = torch.tensor([[list(COLORS).index(n) for n in row] + [0] * (length - len(row)) for row in names])
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in names])
        frames = torch.tensor(list(COLORS.values()), dtype=torch.uint8)[:, :, None, None] * 255
        sentences = [self.sentences[i] for i in indices]
        return Batch(frames.expand(-1, -1, 16, 16), index, mask, sentences, self.ids[list(indices)])


DATA = SimpleNamespace(train=Paint(40, 0), single=Paint(24, 1), val=Paint(8, 2), test=Paint(8, 3))
CONFIG = TrainConfig(
    model=ModelConfig(
        vision=VisionConfig(
            "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
        ),
        text=TextConfig(width=16, depth=1, heads=2, max_words=12),
        temporal=TemporalConfig(depth=1, heads=2, max_frames=4),
        dim=8,
    ),
    stages=[
        StageConfig("towers", "frames", epochs=2, batch_size=8),
        StageConfig("grains", "videos", epochs=2, batch_size=8, max_frames=4, bucket=2),
    ],
    validation_pairs=4,
    checkpoint_seconds=0.0,
    device="cpu",
)
EVENTS = 2 * (3 + 1) + 2 * (5 + 1)  # steps and ends of epochs


def same_weights(a: XCLIP, b: XCLIP) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def lines(folder: Path) -> list[dict[str, Any]]:
    values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in values]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[XCLIP, Path]:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return training.train(CONFIG, DATA, folder), folder


@pytest.mark.parametrize(
    ("stop", "frozen"),
    [
        pytest.param(1, False, id="first step"),
        pytest.param(3, False, id="last step of an epoch"),
        pytest.param(4, False, id="end of an epoch"),
        pytest.param(8, False, id="end of a stage"),
        pytest.param(11, False, id="second stage"),
        pytest.param(11, True, id="second stage, frozen tower"),
        pytest.param(EVENTS, False, id="the end"),
    ],
)
def test_an_interrupted_run_resumes_to_the_very_same_weights(tmp_path: Path, stop: int, frozen: bool):
    stages = [CONFIG.stages[0], dataclasses.replace(CONFIG.stages[1], freeze_vision=frozen)]
    config = dataclasses.replace(CONFIG, stages=stages)
    expected = training.train(config, DATA, tmp_path / "whole")
    seen = 0

    def interrupt(event: training.Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config, DATA, tmp_path / "cut", progress=interrupt)
    events: list[training.Progress] = []
    torch.manual_seed(99)  # nothing may hang on what the process did before
    resumed = training.train(config, DATA, tmp_path / "cut", progress=events.append)
    assert same_weights(expected, resumed)
    assert len(events) == EVENTS - stop
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_finished_run_is_loaded_and_not_trained_again(whole: tuple[XCLIP, Path]):
    events: list[training.Progress] = []
    again = training.train(CONFIG, DATA, whole[1], progress=events.append)
    assert events == []
    assert same_weights(again, whole[0])
    assert same_weights(XCLIP.from_pretrained(whole[1] / "model"), whole[0])


def test_a_sum_logs_its_terms_and_decays_none_of_its_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("multigrain.training.run_folder.LOG_EVERY", 1)
    settings = dataclasses.replace(CONFIG.model, recipe=RecipeConfig("video_colbert"))
    model = training.train(dataclasses.replace(CONFIG, model=settings), DATA, tmp_path)
    groups = make_optimizer(model, OptimizerConfig(weight_decay=0.2)).param_groups
    scalars = {p: group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 0}
    assert len(scalars) == 5 and set(scalars.values()) == {0.0}  # InfoNCE's of the towers, two of each Sigmoid
    terms = {line["stage"]: line.get("terms") for line in lines(tmp_path)}
    assert [found and list(found) for found in terms.values()] == [None, ["frame", "context"]]
    for line in lines(tmp_path):
        if "terms" in line:
            assert sum(line["terms"].values()) == pytest.approx(line["loss"], rel=1e-5)


def test_the_seed_decides(whole: tuple[XCLIP, Path], tmp_path: Path):
    assert same_weights(training.train(CONFIG, DATA, tmp_path / "same"), whole[0])
    other = training.train(dataclasses.replace(CONFIG, seed=1), DATA, tmp_path / "other")
    assert not same_weights(other, whole[0])


def test_files_of_a_run(whole: tuple[XCLIP, Path]):
    model, folder = whole
    assert all("terms" not in line for line in lines(folder))
    assert not model.training
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint.1.pt",
        "checkpoint.pt",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "model",
    ]
    assert json.loads((folder / "config.json").read_text())["stages"][1]["bucket"] == 2
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    log = lines(folder)
    assert [line["kind"] for line in log] == ["epoch", "epoch", "epoch", "step", "epoch"]
    assert log[0]["validation"] is None
    assert set(log[-1]["validation"]) == {"sentence-video", "word-video", "sentence-frame", "word-frame", "all"}


def test_a_checkpoint_of_other_settings_is_refused_by_name(whole: tuple[XCLIP, Path]):
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, frame_source="temporal"))
    with pytest.raises(ValueError, match=r"settings\.model\.frame_source was 'raw', is 'temporal'"):
        training.train(other, DATA, whole[1])
    data = SimpleNamespace(**{**vars(DATA), "train": Paint(40, 7)})
    with pytest.raises(ValueError, match=r"settings\.pairs\.train\.sentences was"):
        training.train(CONFIG, data, whole[1])


@pytest.mark.parametrize("split", ["train", "single", "val", "test"])
@pytest.mark.parametrize("what", ["names", "ids", "sources"])
def test_a_checkpoint_of_other_pairs_is_refused(whole: tuple[XCLIP, Path], split: str, what: str):
    """Videos that changed places, captions that belong together otherwise, other files or parts of them."""
    pairs = Paint(len(vars(DATA)[split].names), list(vars(DATA)).index(split))
    pairs.sentences, pairs.ids = vars(DATA)[split].sentences, vars(DATA)[split].ids
    pairs.sources = None  # type: ignore[attr-defined]
    training.train(CONFIG, SimpleNamespace(**{**vars(DATA), split: pairs}), whole[1])
    values = getattr(pairs, what)
    setattr(pairs, what, ["a.mp4"] if values is None else values.flip(0) if what == "ids" else values[::-1])
    with pytest.raises(ValueError, match=rf"settings\.pairs\.{split}\.{what} was .* pass resume=False"):
        training.train(CONFIG, SimpleNamespace(**{**vars(DATA), split: pairs}), whole[1])


def damage(path: Path, **changes: Any) -> None:
    """Another value in a checkpoint, which is otherwise whole; None takes one away."""
    state = torch.load(path, weights_only=True)
    files.save_tensors(path, {name: value for name, value in {**state, **changes}.items() if value is not None})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


WRONG: dict[str, Any] = {
    "one bit": flip,
    "cut": cut,
    "no position": lambda path: damage(path, position=None),
    "half a position": lambda path: damage(path, position=(1,)),
    "position of words": lambda path: damage(path, position=("a", "b", "c")),
    "stage 99": lambda path: damage(path, position=(99, 0, 0)),
    "stage -5": lambda path: damage(path, position=(-5, 0, 0)),
    "epoch 99": lambda path: damage(path, position=(1, 99, 0)),
    "settings not JSON": lambda path: damage(path, settings="{"),
    "unknown fields": lambda path: damage(path, last={"colour": "red"}),
    "no weights": lambda path: damage(path, model={}),
    "weights of another shape": lambda path: damage(
        path, model={k: v[..., None] for k, v in torch.load(path, weights_only=True)["model"].items()}
    ),
    "an optimizer of other weights": lambda path: damage(path, optimizer=_reshaped(path)),
}


def _reshaped(path: Path) -> dict[str, Any]:
    optimizer = torch.load(path, weights_only=True)["optimizer"]
    optimizer["state"][0]["exp_avg"] = torch.ones(3, 5, 7)
    return optimizer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its second stage."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    events = itertools.count(1)

    def interrupt(_: training.Progress) -> None:
        if next(events) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIG, DATA, folder, progress=interrupt)
    return folder


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_checkpoint_is_made_up_for_by_the_one_before(
    whole: tuple[XCLIP, Path], stopped: Path, tmp_path: Path, what: str
):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    WRONG[what](run / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: not a checkpoint.*from the one before, checkpoint\.1"):
        model = training.train(CONFIG, DATA, run)
    assert same_weights(model, whole[0])
    assert lines(run) == lines(whole[1])


@pytest.mark.filterwarnings("ignore:.*going on from the one before")
@pytest.mark.parametrize("what", ["one bit", "stage 99", "weights of another shape"])
def test_where_no_checkpoint_is_whole_the_error_says_what_to_do(stopped: Path, tmp_path: Path, what: str):
    shutil.copytree(stopped, tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    for path in (tmp_path / "run").glob("checkpoint*"):
        WRONG[what](path)
    with pytest.raises(ValueError, match=r"checkpoint\.1\.pt: not a checkpoint.* pass resume=False to start anew"):
        training.train(CONFIG, DATA, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run" / "checkpoint.pt").unlink()
    (tmp_path / "run" / "checkpoint.1.pt").unlink()
    assert training.train(CONFIG, DATA, tmp_path / "run").training is False


def test_a_lost_checkpoint_is_made_up_for_too(whole: tuple[XCLIP, Path], stopped: Path, tmp_path: Path):
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert same_weights(training.train(CONFIG, DATA, tmp_path / "run"), whole[0])
    assert lines(tmp_path / "run") == lines(whole[1])


def test_a_new_start_leaves_nothing_of_the_run_before(whole: tuple[XCLIP, Path], tmp_path: Path):
    shutil.copytree(whole[1], tmp_path / "run")
    (tmp_path / "run" / "broken.txt").write_text("old.mp4\n")
    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIG, DATA, tmp_path / "run", resume=False, progress=_interrupt)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "broken.txt").exists()


@pytest.mark.parametrize(
    "torn", [b'{"kind": "st', b"\xff\xfe", b"7\n", b'{"kind": "step"}\n', b"null\n", b'{"position": [0, "a", 1]}\n']
)
def test_a_line_that_was_cut_off_stops_no_resumption(whole: tuple[XCLIP, Path], tmp_path: Path, torn: bytes):
    shutil.copytree(whole[1], tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    training.train(CONFIG, DATA, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole[1])


def _interrupt(_: training.Progress) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_trained_on_is_said_first(tmp_path: Path):
    with pytest.raises(ValueError, match=r"max_frames: expected at most 4 .* got 12 in stage 'long'"):
        training.train(dataclasses.replace(CONFIG, stages=[StageConfig("long")]), DATA, tmp_path)
    nothing = SimpleNamespace(**{**vars(DATA), "train": Paint(0, 0)})
    with pytest.raises(ValueError, match="expected pairs to train on in stage 'grains', got none"):
        training.train(CONFIG, nothing, tmp_path)
    with pytest.raises(ValueError, match="device: expected auto, cpu or a CUDA device that is here, got 'cud'"):
        training.train(dataclasses.replace(CONFIG, device="cud"), DATA, tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: not a checkpoint.*resume=False"):
        training.train(CONFIG, DATA, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"out_dir: expected a folder that can be written to, got .*file/run"):
        training.train(CONFIG, DATA, tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stages = [dataclasses.replace(stage, optimizer=OptimizerConfig(1e30)) for stage in CONFIG.stages]
    config = dataclasses.replace(CONFIG, stages=stages)
    said = r"stage 'towers'.*scores: expected numbers .* got NaN at row 0, column 0; a lower learning_rate than 1e\+30"
    with pytest.raises(FloatingPointError, match=said):
        training.train(config, DATA, tmp_path / "read")
    monkeypatch.setattr("multigrain.checks.readable", lambda value: False)  # as on a GPU, or of another rank's scores
    with pytest.raises(
        FloatingPointError, match=r"stage 'towers'.*finite loss, got nan; a lower learning_rate than 1e\+30"
    ):
        training.train(config, DATA, tmp_path / "unread")


def test_evaluation_scores_each_grain_and_all_together(whole: tuple[XCLIP, Path]):
    model = whole[0]
    text, video = training.encode(model, DATA.test, batch_size=3)
    scores = training.scores_by_grain(model, text, video)
    torch.testing.assert_close(scores["all"], model.scorer(text, video).detach())
    for name, matrix in model.scorer.scores_by_grain(text, video).items():
        torch.testing.assert_close(scores[name], matrix.detach())
    metrics = training.evaluate(model, DATA.test, [0, 1, 2]).metrics
    assert set(metrics) == set(scores)
    assert metrics["all"]["protocol"] == "diagonal"


def test_evaluation_scores_by_the_settings_of_the_scorer():
    text = mg.Features(word=(torch.ones(2, 3, 4), torch.tensor([[True], [False]]).expand(2, 3)))
    video = mg.Features(frame=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="word: expected a real token in every item, got none in row 1"):
        training.evaluate_features(text, video, mg.MultiGrain(mg.FrameWord(), strict=True))
    with pytest.raises(Unsupported):
        training.evaluate_features(text, video, mg.MultiGrain(mg.FrameWord(), backend="triton"))


@pytest.mark.parametrize("masked", [True, False])
def test_a_frozen_tower_stays_as_it_is_and_its_kept_features_give_the_same_loss(masked: bool):
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG.model, dropout=0.0, masked=masked)
    model = XCLIP.from_config(config, ["red", "green", "blue", "white", "then"])
    stage = dataclasses.replace(CONFIG.stages[1], freeze_vision=True)
    model.freeze_vision(True)
    objectives = [make_objective(model, s, DATA.train) for s in (stage, CONFIG.stages[1])]
    frozen, live = (lambda rows, o=o: o.share(o.read(0, rows)) for o in objectives)
    rows = [3, 1, 4, 15]
    torch.testing.assert_close(frozen(rows), live(rows))
    frozen(rows).backward()
    assert all(p.grad is None for p in model.vision.parameters())
    assert model.temporal.position.grad is not None
    features, mask = frame_features(model, DATA.train, max_frames=4, batch_size=7)
    assert features.shape == (40, 4, 8)
    assert features[~mask].any() != masked


def test_batches_are_whole_shuffled_and_of_similar_length_in_buckets():
    sentences = ["a " * (i % 7) for i in range(50)]
    plain, bucketed = batches(sentences, 8, 1, seed=3), batches(sentences, 8, 50, seed=3)
    for cut in (plain, bucketed):
        assert [len(rows) for rows in cut] == [8] * 6
        assert len({row for rows in cut for row in rows}) == 48
    assert plain == batches(sentences, 8, 1, seed=3) != batches(sentences, 8, 1, seed=4)

    def spread(cut: list[list[int]]) -> int:
        return sum(max(i % 7 for i in rows) - min(i % 7 for i in rows) for rows in cut)

    assert spread(bucketed) < spread(plain) / 3
    assert batches(sentences[:5], 8, 1, seed=0)[0] != []


def test_equal_sentences_share_an_id():
    assert equal_ids(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_learning_rate_rises_and_falls_without_a_jump():
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert max(rates) == 2.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.2
    assert rates[0] > 0
    assert rates[-1] < 0.01
    assert learning_rate(OptimizerConfig(warmup=0.0), 0, 1) == 1e-3


def test_positions_mixing_and_bilinear_matrices_do_not_decay():
    config = dataclasses.replace(
        CONFIG.model,
        grains=[GrainConfig("word", "frame", _mixing(), bilinear=True)],
    )
    model = XCLIP.from_config(config, ["red"])
    groups = make_optimizer(model, OptimizerConfig()).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "text.embedding.weight" in names
    assert not [n for n in names if any(w in n for w in ("pos", "bilinear", "inner", "outer", "norm", "bias"))]


def _mixing() -> dict[str, Any]:
    return {"class_path": "multigrain.AOSM", "init_args": {"query_tokens": 12, "candidate_tokens": 4}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StageConfig("s", task="sleep"), "task: expected one of frames, videos, got 'sleep'"),
        (lambda: StageConfig("s", epochs=0), "epochs: expected a positive integer, got 0"),
        (lambda: StageConfig("s", batch_size=1), "batch_size: expected at least 2 pairs, to contrast, got 1"),
        (lambda: OptimizerConfig(learning_rate=-1.0), "learning_rate: expected a number above 0, got -1.0"),
        (lambda: OptimizerConfig(warmup=1.0), "warmup: expected a share in"),
        (lambda: OptimizerConfig(eps=float("nan")), "eps: expected a number above 0, got nan"),
        (lambda: OptimizerConfig(learning_rate="fast"), "learning_rate: expected a number above 0, got 'fast'"),
        (lambda: OptimizerConfig(weight_decay=float("inf")), "weight_decay: expected a number of at least 0, got inf"),
        (lambda: StageConfig("s", epochs=1.5), r"epochs: expected a positive integer, got 1\.5"),
        (lambda: StageConfig("s", epochs=10**30), "epochs: expected a positive integer, got 1000"),
        (lambda: TrainConfig(checkpoint_seconds=float("nan"), stages=[StageConfig("s")]), "checkpoint_seconds: .* nan"),
        (lambda: TrainConfig(seed=-1, stages=[StageConfig("s")]), "seed: expected an integer of at least 0, got -1"),
        (lambda: ModelConfig(dim=-1), "dim: expected a positive integer, got -1"),
        (lambda: ModelConfig(dropout=float("nan")), r"dropout: expected a share in \[0, 1\), got nan"),
        (lambda: ModelConfig(init_logit_scale=1e4), "init_logit_scale: expected a finite number from -80 to 80, got"),
        (lambda: TextConfig(depth=-1), "depth: expected an integer from 0 to 1,000, got -1"),
        (lambda: TemporalConfig(depth=-1), "depth: expected an integer from 0 to 1,000, got -1"),
        (lambda: TemporalConfig(max_frames=True), "max_frames: expected a positive integer, got True"),
        (lambda: TrainConfig(), "stages: expected at least one stage"),
        (lambda: TrainConfig(stages=[StageConfig("s"), StageConfig("s")]), "stages: expected distinct names"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_configs_come_by_name_or_path_with_overrides(tmp_path: Path):
    config = training.load_config("demo", ["--seed=5", "--model.aggregator=max_max", "--model.frame_source=raw"])
    assert (config.seed, config.model.aggregator, config.model.frame_source) == (5, "max_max", "raw")
    path = tmp_path / "own.yaml"
    path.write_text(
        "model: {aggregator: {class_path: multigrain.AOSM, init_args: {temperature: 0.5}}}\n"
        "stages: [{name: only, epochs: 1, optimizer: {learning_rate: 0.01}}]\n"
    )
    own = training.load_config(path)
    assert own.stages[0].optimizer.learning_rate == 0.01
    assert "temperature=0.5" in repr(own.model.scorer())


def test_overrides_reach_into_mappings_and_lists():
    config = training.load_config(
        "demo",
        [
            "--model.aggregator.init_args.temperature=0.03",
            "--model.grains.3.aggregator={class_path: multigrain.MaxMax}",
            "--stages.1.optimizer.learning_rate=1e-3",
            "--stages.0.epochs=1",
        ],
    )
    scorer = repr(config.model.scorer())
    assert scorer.count("AOSM(temperature=0.03") == 2
    assert "MaxMax" in scorer
    assert config.stages[1].optimizer.learning_rate == 1e-3
    assert config.stages[0].epochs == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--stages.7.epochs=1", r"stages\.7\.epochs: expected a number below 2, got '7'"),
        ("--seed.more=1", r"seed\.more: expected settings to choose from, got 3"),
        ("--seed", "override: expected --name=value, got '--seed'"),
        ("seed=1", "override: expected --name=value, got 'seed=1'"),
        ("--model.colour=red", "colour"),
        ("--stages.0.epochs=many", "epochs"),
        ("--seed=[", "config"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, message: str):
    path = tmp_path / "own.yaml"
    path.write_text("seed: 3\nstages: [{name: a}, {name: b}]\n")
    with pytest.raises(ValueError, match=message):
        training.load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [{name: a, epochs: x}]", "epochs"),
        ("stages: [{name: a, epochs: 0}]", "epochs: expected a positive integer"),
        ("stagez: []", "stagez"),
        ("stages: [{name: a", "config"),
    ],
)
def test_bad_configs_are_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        training.load_config(path)


def test_unknown_config_lists_those_that_are_there():
    with pytest.raises(FileNotFoundError, match=r"one of .*demo.*; got demmo"):
        training.load_config("demmo")
