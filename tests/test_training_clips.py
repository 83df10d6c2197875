"""Training and evaluation of real towers: rates, precision, captions that share a video, videos that cannot be read."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from multigrain import hubness, training
from multigrain.data.pairs import Batch, loading
from multigrain.evaluation import tables
from multigrain.evaluation.results import rankings
from multigrain.metrics import retrieval_metrics
from multigrain.models import XCLIP, ClipConfig, ModelConfig, TemporalConfig
from multigrain.training import ClipsConfig, OptimizerConfig, StageConfig, TrainConfig
from multigrain.training.optimizer import make_optimizer
from tests.models.clips import sizes

ROOT = Path(__file__).parent.parent
MODEL = ModelConfig(
    clip=ClipConfig(architecture=sizes(text_cfg={"layers": 1}, vision_cfg={"layers": 1}), max_words=8, frozen_layers=0),
    temporal=TemporalConfig(depth=1, max_frames=3),
    dropout=0.0,
)
CONFIG = TrainConfig(
    data=ClipsConfig("none.jsonl", size=32),
    model=MODEL,
    stages=[StageConfig("only", epochs=2, batch_size=4, max_frames=3)],
    device="cpu",
    checkpoint_seconds=0.0,
)


class Noise:
    """Four videos of noise with one to four captions each; video 2 cannot be read where it is broken."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.ids = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
        self.sentences = [f"caption {i} of video {int(v)}" for i, v in enumerate(self.ids)]
        self.names = [f"video{int(v)}" for v in self.ids]

    def batch(self, indices: Sequence[int], max_frames: int = 12, seed: int | None = None) -> Batch:
        rows = [row for row in indices if not (self.broken and self.names[row] == "video2")]
        nothing = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
        generators = [torch.Generator().manual_seed(int(self.ids[row])) for row in rows]
        frames = [torch.randint(0, 256, (2, 3, 32, 32), generator=g, dtype=torch.uint8) for g in generators]
        index = torch.arange(2 * len(rows)).view(-1, 2)
        sentences = [self.sentences[row] for row in rows]
        broken = ["video2.mp4: is broken"] if len(rows) < len(indices) else []
        mask = torch.ones_like(index, dtype=torch.bool)
        return Batch(torch.cat([nothing, *frames]), index, mask, sentences, self.ids[rows], broken)


def data(broken: bool = False) -> Any:
    return SimpleNamespace(train=Noise(broken), single=Noise(broken), val=Noise(broken), test=Noise(broken))


@pytest.fixture(scope="module")
def model() -> XCLIP:
    torch.manual_seed(0)
    return XCLIP.from_config(MODEL).eval()


@pytest.mark.parametrize("group", ["rest", "towers"])
def test_towers_have_a_rate_of_their_own_and_what_is_frozen_has_none(model: XCLIP, group: str):
    config = OptimizerConfig(1e-2, tower_learning_rate=1e-5, logit_scale_group=group)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    rates = {names[id(p)]: g["share"] * config.learning_rate for g in groups for p in g["params"]}
    slow = {name for name, rate in rates.items() if rate == pytest.approx(1e-5)}
    assert {name for name, rate in rates.items() if rate == pytest.approx(1e-2)} == rates.keys() - slow
    scale = "recipe.loss.criterion.logit_scale"
    assert slow - {scale} == {name for name in rates if name.startswith(("vision.", "text."))}
    assert (scale in slow) == (group == "towers")
    assert "vision.visual.conv1.weight" not in rates
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert "vision.visual.proj" in decayed
    assert not [name for name in decayed if any(word in name for word in ("position", "bias", "ln_", "logit_scale"))]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_resumes_to_the_same_weights(precision: str, tmp_path: Path):
    config = dataclasses.replace(CONFIG, precision=precision)
    whole = training.train(config, data(), tmp_path / "whole")

    def interrupt(event: training.Progress) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config, data(), tmp_path / "cut", progress=interrupt)
    torch.manual_seed(5)
    cut = training.train(config, data(), tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True))
    plain = training.train(CONFIG, data(), tmp_path / "plain")
    assert any(
        not torch.equal(a, b) for a, b in zip(whole.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_captions_of_one_video_are_scored_against_each_video_once(model: XCLIP):
    found = training.evaluate(model, Noise(), protocol="group_max", batch_size=3)
    assert found.targets.tolist() == Noise().ids.tolist()
    assert found.videos == [0, 1, 3, 6]
    batch = Noise().batch(found.videos)
    text = model.encode_text(Noise().sentences)
    with torch.no_grad():
        scores = model.scorer(text, model.encode_video(batch.frames, batch.mask, batch.index))
    torch.testing.assert_close(found.scores["all"], scores, atol=1e-5, rtol=1e-5)
    assert found.metrics["all"] == retrieval_metrics(found.scores["all"], Noise().ids, "group_max")
    assert found.broken == ()
    with pytest.raises(ValueError, match="expected one text a video under 'diagonal', got 10 texts and 4 videos"):
        training.evaluate(model, Noise())
    with pytest.raises(ValueError, match="targets: expected none under 'diagonal'"):
        training.metrics_by_grain({"a": torch.eye(3)}, "diagonal", torch.tensor([2, 0, 1]))
    with pytest.raises(ValueError, match="expected at least one to evaluate"):
        training.evaluate(model, Noise(), [])


@pytest.mark.parametrize("name", ["dual_softmax", "inverted_softmax", "sinkhorn"])
@pytest.mark.parametrize("protocol", ["group_max", "all_captions"])
def test_a_correction_of_hubness_serves_each_direction_on_its_own_axis(model: XCLIP, name: str, protocol: str):
    plain = training.evaluate(model, Noise(), protocol=protocol)
    found = training.corrected(plain, name, protocol)
    correct = hubness.TRANSDUCTIVE[name]
    for grain, scores in plain.scores.items():
        t2v = retrieval_metrics(correct(scores), Noise().ids, protocol)["t2v"]
        v2t = retrieval_metrics(correct(scores.T).T, Noise().ids, protocol)["v2t"]
        assert (found.metrics[grain]["t2v"], found.metrics[grain]["v2t"]) == (t2v, v2t)
        assert torch.equal(found.scores[grain], correct(scores))
    assert found.reverse is not None
    assert torch.equal(found.reverse, correct(plain.scores["all"].T).T)
    assert (plain.hubness, found.hubness) == (None, name)
    assert torch.equal(found.gathered().scores["all"], found.scores["all"])
    with pytest.raises(ValueError, match="evaluation: expected one without a correction"):
        training.corrected(found, name, protocol)
    with pytest.raises(ValueError, match="hubness: expected one of dual_softmax, inverted_softmax, sinkhorn"):
        training.corrected(plain, "dsl", protocol)


def test_a_video_that_cannot_be_read_is_left_out_with_its_captions(model: XCLIP, tmp_path: Path):
    found = training.evaluate(model, Noise(broken=True), protocol="all_captions", batch_size=2)
    assert found.videos == [0, 1, 6]
    assert found.texts == [0, 1, 2, 6, 7, 8, 9]
    assert found.targets.tolist() == [0, 1, 1, 2, 2, 2, 2]
    assert found.broken == ("video2.mp4: is broken",)
    with pytest.raises(ValueError, match=r"no video could be read; the first: video2\.mp4: is broken"):
        training.evaluate(model, Noise(broken=True), [3])
    with pytest.raises(ValueError, match=r"video2\.mp4: is broken"):
        training.encode(model, Noise(broken=True))
    twos = dataclasses.replace(CONFIG, stages=[StageConfig("only", epochs=12, batch_size=2, max_frames=3)])
    events: list[training.Progress] = []
    training.train(twos, data(broken=True), tmp_path, progress=events.append)
    assert (tmp_path / "broken.txt").read_text() == "video2.mp4: is broken\n"
    assert len([event for event in events if event.validation is None]) < 12 * 5  # of some batches nothing was left


def test_nothing_that_can_be_read_is_an_error_at_the_end_of_the_epoch(tmp_path: Path):
    pairs = Noise(broken=True)
    pairs.names = ["video2"] * len(pairs.names)
    nothing = SimpleNamespace(train=pairs, single=pairs, val=pairs, test=pairs)
    with pytest.raises(ValueError, match=r"no video of an epoch could be read; the first: video2\.mp4"):
        training.train(CONFIG, nothing, tmp_path)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_lstm_trains_in_half_precision(half: torch.dtype):
    lstm = dataclasses.replace(MODEL, temporal=TemporalConfig(kind="lstm", max_frames=3))
    features = XCLIP.from_config(lstm)
    with torch.autocast("cpu", half):
        found = features.video_features(torch.randn(2, 3, 16), torch.tensor([[True] * 3, [True] * 2 + [False]]))
    found["video"].features.sum().backward()
    assert found["video"].features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in features.temporal.parameters())


def test_frozen_towers_stay_in_eval_mode():
    frozen = XCLIP.from_config(dataclasses.replace(MODEL, clip=dataclasses.replace(MODEL.clip, frozen=True)))
    frozen.train()
    assert frozen.training
    assert not frozen.vision.training  # type: ignore[union-attr]
    assert not frozen.text.training  # type: ignore[union-attr]


def test_an_error_of_a_worker_is_the_error_itself():
    with pytest.raises(ValueError, match=r"^row 3 is bad$"):
        list(loading(_fails, [[1], [3]], 1))


def _fails(rows: list[int]) -> list[int]:
    if 3 in rows:
        raise ValueError("row 3 is bad")
    return rows


def test_chance_is_only_said_where_it_is_one_figure():
    metrics = retrieval_metrics(torch.rand(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), "all_captions")
    assert [row.name for row in tables.rows({"a": metrics}, 3)] == ["a"]
    grouped = retrieval_metrics(torch.rand(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), "group_max")
    assert [row.name for row in tables.rows({"a": grouped}, 3)] == ["a", "chance"]


def test_rankings_name_what_was_found(model: XCLIP):
    pairs = Noise()
    found = training.evaluate(model, pairs, protocol="all_captions")
    lines = list(rankings(found, pairs.sentences, ["video0", "video1", "video2", "video3"], k=2))
    assert [line["direction"] for line in lines] == ["t2v"] * 10 + ["v2t"] * 4
    for line in lines:
        assert len(line["found"]) == 2
        own = [item["own"] for item in line["found"]]
        assert line["rank"] == (1 + own.index(True) if True in own else line["rank"])
        assert line["rank"] > 2 or True in own
    assert lines[10]["query"] == "video0"
    assert {item["item"] for item in lines[10]["found"]} <= set(pairs.sentences)


def test_frames_of_another_size_than_the_tower_s_are_refused(tmp_path: Path):
    config = dataclasses.replace(CONFIG, data=ClipsConfig("none.jsonl", size=64))
    with pytest.raises(ValueError, match=r"data\.size: expected that of the frame tower, 32, got 64"):
        training.train(config, data(), tmp_path)


def test_readers_that_a_program_leaves_behind_do_not_keep_it(tmp_path: Path):
    """One that is not read to its end, and one whose error somebody keeps."""
    code = """
from multigrain.data.pairs import loading
from tests.test_training_clips import _double
kept = loading(_double, [[i] for i in range(200)], 2)
print(next(kept))
try:
    list(loading(_double, [["a" * 10], [None], *([i] for i in range(200))], 2))
except TypeError as error:
    kept_too = error
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0]\n", "")


def test_workers_change_neither_order_nor_the_random_numbers():
    rows = [[1, 2], [3], [4, 5, 6]]
    torch.manual_seed(0)
    expected = torch.rand(1)
    for workers in (0, 2):
        torch.manual_seed(0)
        assert list(loading(_double, rows, workers)) == [[2, 4], [6], [8, 10, 12]]
        assert torch.equal(torch.rand(1), expected)


def _double(rows: list[int]) -> list[int]:
    return [2 * row for row in rows]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipsConfig("a", protocol="max"), "protocol: expected one of diagonal, group_max, all_captions"),
        (lambda: ClipsConfig("a", strategy="all"), "strategy: expected one of uniform, head, random, segment"),
        (lambda: ClipsConfig("a", fps=0), "fps: expected a number above 0, got 0"),
        (lambda: OptimizerConfig(tower_learning_rate=0.0), "tower_learning_rate: expected a number above 0, got 0.0"),
        (lambda: OptimizerConfig(logit_scale_group="x"), "logit_scale_group: expected rest or towers, got 'x'"),
        (lambda: dataclasses.replace(CONFIG, precision="half"), "precision: expected one of fp32, bf16, fp16"),
        (lambda: dataclasses.replace(CONFIG, workers=-1), "workers: expected an integer of at least 0, got -1"),
        (
            lambda: dataclasses.replace(CONFIG, stages=[StageConfig("a", freeze_vision=True)]),
            "freeze_vision: expected false with a manifest",
        ),
    ],
)
def test_settings_out_of_range_are_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_config_over_a_base(tmp_path: Path):
    (tmp_path / "own.yaml").write_text(
        "base: xclip_msrvtt_vit_b16\n"
        "data: {manifest: own.jsonl}\n"
        "model: {aggregator: {class_path: multigrain.MaxMax}}\n"
        "stages: [{epochs: 1, optimizer: {learning_rate: 0.01}}]\n"
    )
    config, base = (training.load_config(name) for name in (tmp_path / "own.yaml", "xclip_msrvtt_vit_b16"))
    assert config.data.manifest == "own.jsonl"
    assert config.model.aggregator == {"class_path": "multigrain.MaxMax"}  # without the arguments of another class
    assert config.model.clip == base.model.clip
    [stage] = config.stages
    assert (stage.epochs, stage.batch_size, stage.optimizer.learning_rate) == (1, 80, 0.01)
    assert stage.optimizer.tower_learning_rate == 1e-7
    for name, base_name in (("one", "two"), ("two", "one")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {tmp_path / base_name}.yaml\n")
    with pytest.raises(ValueError, match=r"base: expected the name or path of another config, got '.*one\.yaml'"):
        training.load_config(tmp_path / "one.yaml")
    with pytest.raises(ValueError, match=r"data\.manifst: no such setting"):
        training.load_config("xclip_lsmdc_vit_b32", ["--data.manifst=x"])
