"""Recipes in an XCLIP: they train on the quickstart's pairs, resume, are saved, evaluated and searched with."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import multigrain as mg
from multigrain import cli, training
from multigrain.data import babyai
from multigrain.heads.temporal import TemporalTransformer
from multigrain.models import XCLIP, ClipConfig, ModelConfig, RecipeConfig, TemporalConfig, TextConfig
from multigrain.models.protocol import fingerprint
from multigrain.training import BabyAIConfig, TrainConfig
from tests.models.clips import SIZES as CLIP
from tests.models.clips import saved, tiny_clip
from tests.test_training import CONFIG, DATA, same_weights

SIZES = {"depth": 1, "heads": 2, "queue_size": 24, "rerank_k": 4}
DIM = 32
PAIRS = {"pairs": 120, "single": 40, "val": 8, "test": 24}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, babyai.BabyAI]:
    """A few of the quickstart's pairs, and where they are cached."""
    cache = tmp_path_factory.mktemp("pairs")
    return cache, babyai.load(cache, **PAIRS, workers=1, progress=False)


def small(name: str, **stage: Any) -> TrainConfig:
    """The config of a recipe with tiny towers: one stage above a frozen frame tower."""
    config = training.load_config(f"recipes/{name}")
    recipe = config.model.recipe
    assert recipe is not None
    recipe = dataclasses.replace(recipe, settings={k: SIZES.get(k, v) for k, v in recipe.settings.items()})
    vision = {**config.model.vision.kwargs, "embed_dim": 16, "num_heads": 2}
    model = dataclasses.replace(
        config.model,
        recipe=recipe,
        dim=DIM,
        vision=dataclasses.replace(config.model.vision, kwargs=vision),
        text=TextConfig(width=DIM, depth=1, heads=2),
    )
    changes = {"batch_size": 12, "epochs": 5, "bucket": 1, **stage}
    stages = [dataclasses.replace(config.stages[1], **changes)]
    data = BabyAIConfig(**PAIRS)
    return dataclasses.replace(config, data=data, model=model, stages=stages, validation_pairs=0, device="cpu")


def means(losses: list[float], parts: int) -> list[float]:
    size = len(losses) // parts
    return [sum(losses[i * size : (i + 1) * size]) / size for i in range(parts)]


@pytest.mark.parametrize("name", mg.recipes.names())
def test_it_trains_on_the_quickstarts_pairs(name: str, pairs: tuple[Path, babyai.BabyAI], tmp_path: Path):
    config = small(name)
    assert config.model.recipe is not None and config.model.recipe.name == name
    losses: list[float] = []
    data = dataclasses.replace(pairs[1], train=pairs[1].train.subset(range(48)))
    model = training.train(config, data, tmp_path, progress=lambda event: losses.append(event.loss))
    epochs = means(losses, 5)
    # Queues fill in the first two epochs, and their loss rises with the number of negatives.
    first = 2 if model.recipe is not None and model.recipe.queue_size is not None else 0
    assert epochs[-1] < epochs[first], epochs
    # A model of its folder scores the same.
    text, video = training.encode(model, data.val)
    again = XCLIP.from_pretrained(tmp_path)
    assert same_weights(model, again)
    assert torch.equal(model.scorer(text, video), again.scorer(*training.encode(again, data.val)))
    metrics = training.evaluate(again, data.val).metrics["all"]
    assert all(0 <= metrics[way]["R@1"] <= 100 for way in ("t2v", "v2t"))


TOY = dataclasses.replace(CONFIG, stages=[CONFIG.stages[0], dataclasses.replace(CONFIG.stages[1], freeze_vision=True)])


def toy(name: str, words: bool = False, **settings: Any) -> TrainConfig:
    model = dataclasses.replace(TOY.model, recipe=RecipeConfig(name, settings, words))
    return dataclasses.replace(TOY, model=model)


MOMENTUM = {
    "wenlan": {"queue_size": 12, "momentum": 0.9},
    "albef": {"queue_size": 12, "momentum": 0.9, "depth": 1, "heads": 2, "rerank_k": 2},
}


@pytest.mark.parametrize("stop", [5, 11, 14])
@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_encoders_and_queues_resume_to_the_last_bit(name: str, stop: int, tmp_path: Path):
    config = toy(name, **MOMENTUM[name])
    expected = training.train(config, DATA, tmp_path / "whole")
    seen = 0

    def interrupt(event: training.Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config, DATA, tmp_path / "cut", progress=interrupt)
    resumed = training.train(config, DATA, tmp_path / "cut")
    assert same_weights(expected, resumed)
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["momentum"] for run in ("whole", "cut")]
    queues = [state["queues"] for state in states]
    for a, b in zip(*queues, strict=True):
        assert a["ids"].tolist() == b["ids"].tolist() and len(a["ids"]) == 12
        for grain, (features, *_) in a["features"].items():
            assert torch.equal(features, b["features"][grain][0])
    assert all(torch.equal(x, states[1]["model"][key]) for key, x in states[0]["model"].items())
    # The copy follows the model, at a distance.
    moved = [key for key, x in states[0]["model"].items() if not torch.equal(x, expected.state_dict()[key])]
    assert any(key.startswith("text.") for key in moved) and not any(key.startswith("vision.") for key in moved)


def test_a_step_of_momentum_encoders_in_its_order():
    """The copy follows, encodes the keys; the loss meets them and earlier ones; then the queues take them in."""
    torch.manual_seed(0)
    model = XCLIP.from_config(toy("wenlan", queue_size=6, momentum=0.75).model, ["red", "go"]).eval()
    momentum = training.momentum.Momentum(model)
    before = {name: x.clone() for name, x in momentum.model.named_parameters()}
    with torch.no_grad():
        for x in model.parameters():
            x.add_(torch.randn_like(x))
    frames, ids = torch.randn(2, 3, model.vision.dim), torch.tensor([5, 6])

    def encode(encoder: XCLIP, sentences: list[str]) -> tuple[mg.Features, mg.Features, torch.Tensor]:
        return encoder.encode_text(sentences), encoder.video_features(frames), ids

    for _ in range(2):
        queues = copy.deepcopy(momentum.queues)
        assert queues is not None and momentum.queues is not None
        loss = momentum.loss(model, encode, ["red", "go red"])
        for name, x in momentum.model.named_parameters():
            before[name] = 0.75 * before[name] + 0.25 * dict(model.named_parameters())[name]
            assert torch.allclose(x, before[name], atol=1e-6) and not x.requires_grad
        keys = encode(momentum.model, ["red", "go red"])[:2]
        expected = model.loss(
            *encode(model, ["red", "go red"]), keys=keys, text_queue=queues[0], video_queue=queues[1]
        )
        assert torch.allclose(loss, expected)
        for queue, old, side, grain in zip(momentum.queues, queues, keys, ("sentence", "video"), strict=True):
            assert queue.features is not None and queue.features.names == (grain,) and len(queue) == len(old) + 2
            assert torch.equal(queue.features[grain].features[-2:], side[grain].features)
            assert queue.ids is not None and queue.ids[-2:].tolist() == [5, 6]


def test_a_queue_counts_in_the_loss(tmp_path: Path):
    losses: dict[int, list[float]] = {}
    for size in (1, 32):
        found = losses.setdefault(size, [])
        config = toy("wenlan", queue_size=size)
        training.train(config, DATA, tmp_path / str(size), progress=lambda event, found=found: found.append(event.loss))
    steps = losses[1][:9], losses[32][:9]  # the towers, and the first batch over them, when queues are empty
    assert steps[0] == steps[1]
    assert losses[32][10] > losses[1][10] + 0.5


def test_each_direction_is_ranked_by_its_own_scorer(tmp_path: Path):
    model = training.train(toy("filip"), DATA, tmp_path)
    assert model.recipe is not None and model.recipe.reverse is not None
    text, video = training.encode(model, DATA.test, max_frames=3)
    found = training.evaluate(model, DATA.test, max_frames=3)
    targets = {int(i): column for column, i in enumerate(dict.fromkeys(DATA.test.ids.tolist()))}
    columns = [DATA.test.ids.tolist().index(i) for i in targets]
    assert found.reverse is not None
    assert torch.allclose(found.scores["all"], model.recipe.scorer(text, video)[:, columns], atol=1e-6)
    assert torch.allclose(found.reverse, model.recipe.reverse(text, video)[:, columns], atol=1e-6)
    both = training.evaluate_features(text, video, model.recipe)
    assert both.reverse is not None
    torch.testing.assert_close(both.scores["all"], model.recipe.scorer(text, video).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.reverse, model.recipe.reverse(text, video).detach(), atol=1e-5, rtol=0)
    t2v, v2t = (mg.retrieval_metrics(scores) for scores in (both.scores["all"], both.reverse))
    assert (both.metrics["all"]["t2v"], both.metrics["all"]["v2t"]) == (t2v["t2v"], v2t["v2t"])
    whole = found.gathered()
    assert whole.reverse is not None and torch.equal(whole.reverse, found.reverse)
    corrected = training.corrected(both, "dual_softmax")
    assert corrected.reverse is not None
    assert torch.allclose(corrected.reverse, mg.hubness.dual_softmax(both.reverse.T).T)


def test_a_reranker_orders_the_best(tmp_path: Path):
    model = training.train(toy("albef", **MOMENTUM["albef"]), DATA, tmp_path)
    assert model.recipe is not None and model.recipe.reranker is not None
    text, video = training.encode(model, DATA.test, max_frames=3)
    found = training.evaluate_features(text, video, model.recipe)
    first, second = model.recipe.scorer(text, video).detach(), model.recipe.reranker(text, video)
    assert found.reverse is not None
    sides = (found.scores["all"], first, second), (found.reverse.T, first.T, second.T)
    for ranked, cheap, dear in sides:
        for scores, before, judged in zip(ranked, cheap, dear, strict=True):
            # Videos of the same colours tie, up to rounding: values are compared, not places.
            chosen, best = scores.topk(2).indices, before.topk(2)
            assert torch.allclose(before[chosen].sort().values, best.values.sort().values, atol=1e-5)
            assert judged[chosen[0]] >= judged[chosen[1]] - 1e-5
    assert not torch.equal(found.scores["all"].argmax(1), first.argmax(1))  # it had something to say


def test_what_a_reranker_orders_is_not_corrected(tmp_path: Path):
    model = training.train(toy("albef", **MOMENTUM["albef"]), DATA, tmp_path)
    found = training.evaluate(model, DATA.test, max_frames=3)
    with pytest.raises(ValueError, match="hubness: expected scores that compare between queries"):
        training.corrected(found, "dual_softmax")
    with pytest.raises(ValueError, match="hubness: expected scores that compare between queries"):
        training.check_hubness("dual_softmax", model.recipe)
    text, video = training.encode(model, DATA.test, max_frames=3)
    assert training.evaluate_features(text, video, model.recipe).reranked
    first = training.evaluate_features(text, video, model.scorer)
    assert training.corrected(first, "dual_softmax").hubness == "dual_softmax"


def test_a_model_in_training_is_evaluated_without_dropout():
    model = XCLIP.from_config(toy("matching_head", depth=1, heads=2, dropout=0.5).model, ["red", "go"]).train()
    scores = [training.evaluate(model, DATA.test, max_frames=3).scores["all"] for _ in range(2)]
    assert torch.equal(*scores) and scores[0].unique().numel() > 1
    assert model.training and model.scorer.training


def test_a_recipe_reads_as_many_frames_as_the_model_unless_it_says_otherwise(tmp_path: Path):
    longer = dataclasses.replace(TOY.model, temporal=TemporalConfig(max_frames=40))
    for settings, expected in (({}, 40), ({"max_frames": 2}, 2)):
        recipe = RecipeConfig("xclip", {"depth": 1, "heads": 2, **settings})
        config = dataclasses.replace(TOY, model=dataclasses.replace(longer, recipe=recipe))
        model = XCLIP.from_config(config.model, ["red"])
        assert [m.max_frames for m in model.modules() if isinstance(m, TemporalTransformer)] == [expected]
    with pytest.raises(ValueError, match=r"max_frames: expected at most 2 .*, got \d+ in stage"):
        training.train(config, DATA, tmp_path)
    assert XCLIP.from_config(dataclasses.replace(longer, recipe=RecipeConfig("clip")), ["red"]).recipe is not None


def test_word_weights_are_inverse_document_frequencies(tmp_path: Path):
    config = toy("taco", True, depth=1, heads=2, k=2, rerank_k=2)
    model = XCLIP.from_config(config.model, ["go", "red", "to"])
    assert model.encode_text(["go to"])["word_weight"].features.tolist() == [[[1.0], [1.0]]]
    model.weigh_words(["go to red", "to to", "to go", "to blue"])
    weights = model.encode_text(["to red", "go blue to"])["word_weight"].features[..., 0]
    expected = torch.tensor([[0.0, 4.0, 1.0], [2.0, 1.0, 1.0]]).log()
    expected[1, 1] = 0.0  # not in the vocabulary
    assert torch.allclose(weights, torch.nan_to_num(expected, neginf=0.0))
    trained = training.train(config, DATA, tmp_path)
    weights = dict(zip(["", *trained.text.vocabulary], trained.idf.tolist(), strict=True))
    # Both commas and "then" are in every sentence.
    assert {word for word, weight in weights.items() if weight == 0} == {"", ",", "then"}
    assert torch.equal(trained.idf, XCLIP.from_pretrained(tmp_path).idf)


def test_the_command_line_trains_and_evaluates_a_recipe(pairs: tuple[Path, babyai.BabyAI], tmp_path: Path, capsys: Any):
    sizes = [f"--data.{name}={value}" for name, value in PAIRS.items()]
    tiny = ["--model.dim=32", "--model.text.width=32", "--model.text.depth=1", "--model.recipe.settings.depth=1"]
    short = ["--stages.0.epochs=1", "--stages.1.epochs=1", "--validation_pairs=4", "--model.recipe.settings.rerank_k=3"]
    out = ["--out", str(tmp_path / "run"), "--cache", str(pairs[0])]
    assert cli.main(["train", "--config", "recipes/albef", *out, *sizes, *tiny, *short]) == 0
    assert cli.main(["evaluate", *out]) == 0
    said = capsys.readouterr().out
    assert "24 sentences against 24 videos" in said and "index.html" not in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["model"]["recipe"]["name"] == "albef" and set(metrics["metrics"]) == {
        "sentence-video",
        "all",
    }
    lines = (tmp_path / "run" / "rankings.jsonl").read_text().splitlines()
    assert len(lines) == 2 * PAIRS["test"]
    for other, message in (
        ("--model.aggregator=max_max", "expected no grains, aggregator or weights for the recipe 'albef'"),
        ("--model.grains=[{query: word, candidate: frame}]", "expected no grains, aggregator or weights"),
    ):
        assert cli.main(["evaluate", *out, other]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["evaluate", "--config", "recipes/filip", *out]) == 2  # of other pairs, too
    error = capsys.readouterr().err
    assert "model.recipe: expected that of the training, RecipeConfig(name='albef'," in error
    assert "leave out --config" in error


@pytest.mark.parametrize(
    "override", ["--model.aggregator=max_max", "--model.grains.0.name=x", "--model.weights=learned",
                 "--model.frame_source=raw", "--model.temporal.depth=1"],
)  # fmt: skip
def test_what_a_recipe_does_not_read_is_refused_before_any_work(override: str, tmp_path: Path, capsys: Any):
    train = ["train", "--config", "recipes/filip", "--out", str(tmp_path / "run"), override]
    assert cli.main(train) == 2
    assert f"{override}: expected no such setting with the recipe 'filip'" in (error := capsys.readouterr().err)
    assert "append --model.recipe=null" in error
    assert not (tmp_path / "run").exists()


def test_features_of_another_recipe_are_not_searched_with():
    models = [
        XCLIP.from_config(dataclasses.replace(TOY.model, recipe=recipe), ["red"])
        for recipe in (None, RecipeConfig("clip"), RecipeConfig("filip"))
    ]
    described = [fingerprint(model) for model in models]
    assert described[0]["recipe"] is None  # X-CLIP's own
    assert described[1]["recipe"] != described[2]["recipe"]
    names = [model.video_features(torch.randn(2, 3, 8)).names for model in models]
    assert [sorted(name) for name in names] == [["frame", "video"], ["frame", "video"], ["frame"]]


@pytest.mark.parametrize("name", ["drl", "xclip"])
def test_a_recipe_over_the_towers_of_clip(name: str, tmp_path: Path):
    weights = saved(tiny_clip(), tmp_path / "clip.pt")
    model = XCLIP.from_clip(weights, CLIP, recipe=RecipeConfig(name), max_words=12)
    captions, frames = ["a man rides a horse", "two dogs in the snow"], torch.rand(2, 5, 3, 32, 32)
    loss = model(captions, frames)
    loss.backward()
    assert model.temporal is None and model.recipe is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.recipe.parameters())
    slow = model.tower_parameters()
    assert any(key.endswith("logit_scale") for key in slow) and not any(key.startswith("scorer.") for key in slow)
    model.save_pretrained(tmp_path / "model")
    again = XCLIP.from_pretrained(tmp_path / "model").train()
    assert torch.equal(again(captions, frames), loss)


def test_what_a_recipe_cannot_be_combined_with_is_said():
    with pytest.raises(ValueError, match="masked: expected True with a recipe, got False"):
        ModelConfig(recipe=RecipeConfig("clip"), masked=False)
    with pytest.raises(ValueError, match="word_weights: expected a text tower trained from scratch, got CLIP's"):
        ModelConfig(recipe=RecipeConfig("taco", word_weights=True), clip=ClipConfig())
    with pytest.raises(ValueError, match=r"recipe: expected one of albef, .*got 'nothing'"):
        ModelConfig(recipe=RecipeConfig("nothing")).scorer()
    with pytest.raises(ValueError, match=r"recipe filip: .*expected share, got depth"):
        ModelConfig(recipe=RecipeConfig("filip", {"depth": 2})).scorer()
    model = XCLIP.from_config(dataclasses.replace(TOY.model, recipe=RecipeConfig("clip")), ["red"])
    with pytest.raises(ValueError, match="no counterpart"):
        model.save_original("nowhere.bin")


def test_there_is_a_config_for_each_recipe():
    folder = Path(training.config.__file__).parent.parent / "configs" / "recipes"
    assert {path.stem for path in folder.glob("*.yaml")} == set(mg.recipes.names())
    demo = training.load_config("demo")
    for name in mg.recipes.names():
        config = training.load_config(f"recipes/{name}")
        assert config.model.recipe is not None and config.model.recipe.name == name
        assert dataclasses.replace(config.model, recipe=None) == demo.model and config.data == demo.data
        towers, grains = config.stages
        assert towers == demo.stages[0] and dataclasses.replace(grains, batch_size=64) == demo.stages[1]
