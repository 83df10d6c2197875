"""Settings from plain values, and whose classes they may name."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import multigrain as mg
from multigrain import training
from multigrain.cli import main
from multigrain.models import XCLIP, ModelConfig, TextConfig, VisionConfig
from multigrain.models.settings import build
from multigrain.training import TrainConfig

VISION = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
CODE = "import multigrain\n\n\nclass Worst(multigrain.MeanMax):\n    pass\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "settings: expected settings by name, got []"),
        ({"dim": 1.5}, "dim: expected int, got 1.5"),
        ({"dim": True}, "dim: expected int, got True"),
        ({"dim": "12"}, "dim: expected int, got '12'"),
        ({"dropout": float("nan")}, "dropout: expected float, got nan"),
        ({"dropout": "much"}, "dropout: expected float, got 'much'"),
        ({"dropout": 10**400}, "dropout: expected float, got 1000"),
        ({"masked": 1}, "masked: expected bool, got 1"),
        ({"weights": {"a": 1}}, "weights: expected str or list[float], got {'a': 1}"),
        ({"weights": [1, "x"]}, "weights.1: expected float, got 'x'"),
        ({"grains": [{"query": "word"}]}, "grains.0.candidate: expected a setting, got none"),
        ({"grains": {"query": "word"}}, "grains: expected list[multigrain.models.config.GrainConfig], got {'query'"),
        ({"clip": 3}, "clip: expected settings by name or nothing, got 3"),
        ({"vision": {"class_path": "os.system"}}, "vision.class_path: no such setting; there are name, kwargs"),
        ({"vision": {"kwargs": {1: 2}}}, "vision.kwargs: expected dict[str, typing.Any], got {1: 2}"),
        ({1: 2}, "1: no such setting"),
        ({"dim": -1}, "dim: expected a positive integer, got -1"),
        ({"text": {"depth": -1}}, "depth: expected an integer from 0 to 1,000, got -1"),
        ({"temporal": {"max_frames": 0}}, "max_frames: expected a positive integer, got 0"),
    ],
)
def test_values_of_other_types_are_named(values: Any, message: str):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build(ModelConfig, values)


def test_numbers_that_yaml_takes_for_words_and_lists_in_place_of_tuples():
    stage = {"name": "a", "optimizer": {"learning_rate": "1e-3", "betas": [0, 0.5], "eps": 1}}
    optimizer = build(TrainConfig, {"stages": [stage]}).stages[0].optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.eps) == (1e-3, (0, 0.5), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\nstages: [{name: a}]", "expected every name once, got 'seed' more than once"),
        ("x: &x [1]\ny: [" + "*x, " * 21 + "]", r"expected at most 20 aliases, such as \*x"),
        ("x: " + "[" * 3000, "settings in too many others"),
        ("x: " + "{a: " * 3000, "settings in too many others"),
        ("model: !!python/name:os.system", "could not determine a constructor"),
        ("{[a]: 1}", "unhashable"),
    ],
)
def test_yaml_that_is_too_much(text: str, message: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        training.load_config(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_few_aliases_are_values(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("stages: [&a {name: a, epochs: 2}, {<<: *a, name: b}]")
    assert [stage.epochs for stage in training.load_config(tmp_path / "a.yaml").stages] == [2, 2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose aggregator is of a package that lies beside it, in the working directory and on the path."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/__init__.py").touch()
    (tmp_path / "theirs/worst.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = ModelConfig(vision=VisionConfig(kwargs=VISION), text=TextConfig(16, 1, 2), dim=16)
    XCLIP.from_config(config, ["a"]).save_pretrained("model")
    values = json.loads(Path("model/config.json").read_text())
    values["model"]["aggregator"] = {"class_path": "theirs.worst.Worst", "init_args": {}}
    Path("model/config.json").write_text(json.dumps(values))
    for name in ("theirs", "theirs.worst"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "model"


def test_classes_of_others_need_trust(folder: Path, capsys: Any):
    for trust in ((), ("json", "decimal")):
        with pytest.raises(
            ValueError, match=r"got 'theirs\.worst\.Worst'; if you trust .* trust=\('theirs',\), or --trust"
        ):
            XCLIP.from_pretrained(folder, trust)
    assert "theirs" not in sys.modules
    command = ["explain", "--model", str(folder), "--video", "no.mp4", "--text", "a", "--out", "a.png"]
    assert main(command) == 2
    assert "or --trust theirs" in capsys.readouterr().err
    assert "theirs" not in sys.modules
    assert main([*command, "--trust", "theirs"]) == 2
    assert "no.mp4" in capsys.readouterr().err  # which came after the model
    model = XCLIP.from_pretrained(folder, trust=["theirs"])
    assert type(model.scorer.grains[1].aggregator).__name__ == "Worst"
    with pytest.raises(ImportError, match="not_there"):
        XCLIP.from_pretrained(folder, trust=["not_there"])


def test_classes_that_the_program_registered_need_none(folder: Path):
    import theirs.worst  # type: ignore[import-not-found]

    with pytest.raises(ValueError, match="expected a registered name"):
        XCLIP.from_pretrained(folder)  # imported for whatever reason, but nobody said that files may name it
    from multigrain.aggregators import base

    mg.register_aggregator("worst of all")(theirs.worst.Worst)
    try:
        assert type(XCLIP.from_pretrained(folder).scorer.grains[1].aggregator) is theirs.worst.Worst
    finally:
        del base._REGISTRY["worst of all"]


def test_a_config_of_classes_of_others_needs_trust_too(folder: Path):
    Path("a.yaml").write_text("model: {aggregator: {class_path: theirs.worst.Worst}}\nstages: [{name: a}]")
    with pytest.raises(ValueError, match="expected a registered name or a class of multigrain"):
        training.load_config("a.yaml")
    assert "theirs" not in sys.modules
    assert "Worst" in repr(training.load_config("a.yaml", trust=["theirs"]).model.scorer())


def test_the_weights_that_made_a_model_are_not_opened_again(folder: Path):
    values = json.loads((folder / "config.json").read_text())
    values["model"].update(aggregator="mean_max", clip=None)
    values["model"]["vision"]["kwargs"]["pretrained"] = False
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"vision\.kwargs: expected nothing from files or the network, got pretrained"):
        XCLIP.from_pretrained(folder)
