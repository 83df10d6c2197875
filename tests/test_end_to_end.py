"""From annotation files and video files to metrics, and from a folder of videos to the one that a sentence is about."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import multigrain as mg
from multigrain import training
from multigrain.cli import main, runs
from multigrain.cli.main import _Warnings
from multigrain.data.annotations import SOURCES
from multigrain.data.prepare import protocol_of
from multigrain.files import rounded
from multigrain.models import ModelConfig
from multigrain.training import Progress, TrainConfig
from tests.clips import write_clip
from tests.data.test_prepare import write
from tests.models.clips import saved, tiny_clip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as OpenAI's, of a tiny CLIP."""
    return saved(tiny_clip(text_cfg={"width": 64, "heads": 1}), tmp_path_factory.mktemp("clip") / "clip.pt")


def dataset(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Annotations and real videos of a data set in miniature, and where its manifest is to go."""
    _, annotations, videos, manifest = write(folder, name)
    for i, path in enumerate(sorted(path for path in videos.rglob("*") if path.is_file())):
        clip = write_clip(folder / "clip.mp4", [n for n in (i, i + 7, i + 30) for _ in range(10)])
        path.write_bytes(clip.read_bytes())  # whatever its name says: decoders look inside
    return annotations, videos, manifest


def settings(manifest: Path, weights: Path, protocol: str = "diagonal", **more: Any) -> dict[str, Any]:
    return {
        "data": {"manifest": str(manifest), "protocol": protocol, "size": 32},
        "model": {
            "clip": {"weights": str(weights), "architecture": "openai", "max_words": 12},
            "temporal": {"depth": 1, "max_frames": 3},
        },
        "stages": [
            {
                "name": "xclip",
                "epochs": 4,
                "batch_size": 2,
                "max_frames": 3,
                "optimizer": {"tower_learning_rate": 1e-5, "logit_scale_group": "towers"},
            }
        ],
        "device": "cpu",
        "checkpoint_seconds": 0.0,
        **more,
    }


def config(folder: Path, values: dict[str, Any]) -> TrainConfig:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return training.load_config(path)


def evaluated(config: TrainConfig, out: Path) -> dict[str, Any]:
    run, model = runs.restore(runs.Run(config, out))
    return dict(runs.evaluate(run, model, runs.load(run).test).metrics)


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_from_its_annotations_to_metrics_with_an_interruption(name: str, tmp_path: Path, weights: Path):
    annotations, videos, manifest = dataset(tmp_path, name)
    arguments = ["prepare", name, "--annotations", str(annotations), "--videos", str(videos), "--out", str(manifest)]
    assert main([*arguments, *(["--val", "0"] if name in ("msrvtt", "activitynet") else [])]) == 0
    run = config(tmp_path, settings(manifest, weights, protocol_of(name)))
    data = run.data.load()
    training.train(run, data, tmp_path / "whole")

    def interrupt(event: Progress) -> None:
        if event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(run, data, tmp_path / "cut", progress=interrupt)
    training.train(run, run.data.load(), tmp_path / "cut")
    expected = evaluated(run, tmp_path / "whole")
    assert evaluated(run, tmp_path / "cut") == expected
    assert expected["all"]["protocol"] == protocol_of(name)
    assert list(expected) == ["sentence-video", "word-video", "sentence-frame", "word-frame", "all"]


def test_killed_on_the_command_line_and_resumed_by_workers(tmp_path: Path, weights: Path, capsys: Any):
    _, _, manifest = arguments = dataset(tmp_path, "msrvtt")
    broken = arguments[1] / "video2.mp4"
    broken.write_bytes(b"no video")
    prepare = ["--annotations", str(arguments[0]), "--videos", str(arguments[1]), "--out", str(manifest), "--val", "1"]
    assert main(["prepare", "msrvtt", *prepare, "--seed", "4"]) == 0
    path = tmp_path / "run.yaml"
    values = settings(manifest, weights)
    values["stages"][0] |= {"epochs": 20, "batch_size": 3}
    path.write_text(yaml.safe_dump(values))
    train = ["train", "--config", str(path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "multigrain.cli", *train, "--workers=1"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if "epoch 3/20" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert not (tmp_path / "run" / "model").exists()

    assert main([*train, "--workers=1"]) == 0  # a resumed run may have other workers
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "whole")]) == 0
    assert "1 videos could not be read" in capsys.readouterr().err
    assert "video2.mp4" in (tmp_path / "run" / "broken.txt").read_text()
    found = []
    for out in ("run", "whole"):
        assert main(["evaluate", "--out", str(tmp_path / out)]) == 0
        found.append(json.loads((tmp_path / out / "metrics.json").read_text())["metrics"])
    assert found[0] == found[1]
    rankings = [json.loads(line) for line in (tmp_path / "run" / "rankings.jsonl").read_text().splitlines()]
    assert [line["query"] for line in rankings] == ["a man, and a dog", "fireworks", "video7010", "video7020"]
    assert all({item["item"] for item in line["found"]} == {"video7010", "video7020"} for line in rankings[:2])
    assert all(line["rank"] == 1 + [item["own"] for item in line["found"]].index(True) for line in rankings)

    strict = [*train, "--no-resume", "--data.strict=true"]
    assert main(strict) == 2
    assert "video2.mp4" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_what_can_be_wrong_is_said_in_one_line(tmp_path: Path, weights: Path, capsys: Any):
    annotations, videos, manifest = dataset(tmp_path, "msrvtt")
    places = {"annotations": annotations, "videos": videos, "out": manifest}
    arguments = ["prepare", "msrvtt", *(word for name, path in places.items() for word in (f"--{name}", str(path)))]
    assert main([*arguments, "--val", "0"]) == 0
    (videos / "video7010.mp4").unlink()
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(manifest, weights)))
    train = ["train", "--config", str(path), "--out", str(tmp_path / "run")]

    def said(*more: str, code: int = 2) -> str:
        capsys.readouterr()
        assert main([*train, *more]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("multigrain: ")]
        assert len(lines) <= 2
        return " | ".join(lines)

    assert "none.pt" in said("--model.clip.weights=none.pt")
    assert "ViT-B-32" in said("--model.clip.weights=null", "--model.clip.architecture=ViT-B-320")
    assert "video7010.mp4" in said("--data.strict=true")
    assert "1 of 5 videos are missing" in said("--data.strict=true")
    mixing = "--model.aggregator={class_path: multigrain.AOSM, init_args: {query_tokens: 4, candidate_tokens: 3}}"
    grain = "--model.grains=[{query: word, candidate: frame}]"
    assert "max_words: expected at most 4 (the mixing matrix of grain 'word-frame'), got 12" in said(mixing, grain)
    cut = said("--model.clip.max_words=3", code=0)
    assert "1 of 5 videos are missing" in cut
    assert re.search(r"warning: \d of \d captions were cut to 3 tokens", cut)
    saved(tiny_clip(text_cfg={"width": 128, "heads": 2}), tmp_path / "other.pt")
    torch.save({**torch.load(weights), "more": torch.ones(1)}, tmp_path / "more.pt")
    assert "more" in said(f"--model.clip.weights={tmp_path / 'more.pt'}", "--no-resume")
    assert main(["evaluate", "--config", str(path), "--model", str(tmp_path / "none")]) == 2
    assert "model: expected a folder or a checkpoint file" in capsys.readouterr().err


def test_the_command_line_says_a_warning_once(capsys: Any):
    show = _Warnings().show
    for count in (3, 4):
        show(UserWarning(f"{count} captions\n were cut"), UserWarning, "file", 1)
    show(UserWarning("something else"), UserWarning, "file", 1)
    assert capsys.readouterr().err == (
        "multigrain: warning: 3 captions were cut\nmultigrain: warning: something else\n"
    )


def test_extract_then_search_finds_the_video_that_the_sentence_is_about(tmp_path: Path, weights: Path, capsys: Any):
    """Captions learned by heart, by a margin that no rounding takes away: what search must find is then known."""
    annotations, videos, manifest = dataset(tmp_path, "msrvtt")
    prepare = ["prepare", "msrvtt", "--annotations", str(annotations), "--videos", str(videos), "--out", str(manifest)]
    assert main([*prepare, "--val", "0"]) == 0
    values = settings(manifest, weights)
    values["stages"][0] |= {"epochs": 60, "batch_size": 4, "distinct": True, "optimizer": {"learning_rate": 1e-3}}
    values["checkpoint_seconds"] = 60.0
    run = config(tmp_path, values)
    data = run.data.load()
    model = training.train(run, data, tmp_path / "run")
    learned = training.evaluate(model, data.train, protocol="all_captions")
    own = learned.targets[:, None] == torch.arange(3)
    scores = learned.scores["all"]
    assert (scores[own] - scores.masked_fill(own, -1).amax(1)).min() > 0.2  # it was 0.45 to 0.64, of cosines
    capsys.readouterr()
    features = str(tmp_path / "features")
    for video in (*videos.glob("video7*"), *videos.glob("video3*")):
        video.unlink()  # never learned
    extract = ["extract", str(videos), "--model", str(tmp_path / "run"), "--out", features]
    assert main(extract) == 0
    assert "3 videos" in capsys.readouterr().out
    for sentence, video in (("a dog", "video1"), ("x", "video2"), ("two cats", "video0")):
        assert main(["search", sentence, "--in", features, "--model", str(tmp_path / "run")]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert video in first
        assert all(grain.name in first for grain in model.scorer.grains)
    assert main(["search", "a dog", "--in", features]) == 2  # features may be anyone's: what they name is not opened
    assert capsys.readouterr().err == (
        "multigrain: error: model: expected --model, the one that made the features; they say: "
        f"--model {tmp_path / 'run'}\n"
    )


def test_evaluate_takes_saved_features(tmp_path: Path, capsys: Any):
    torch.manual_seed(0)
    text = mg.Features(sentence=torch.randn(6, 8), word=torch.randn(6, 5, 8))
    video = mg.Features(video=torch.randn(3, 8), frame=torch.randn(3, 4, 8))
    text.save(tmp_path / "text.pt")
    video.save(tmp_path / "video.pt")
    (tmp_path / "targets.json").write_text("[0, 0, 1, 1, 2, 2]")
    files = ["--text", str(tmp_path / "text.pt"), "--video", str(tmp_path / "video.pt"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *files]) == 2
    assert "6 texts and 3 videos" in capsys.readouterr().err
    (tmp_path / "few.json").write_text("[0, 1]")
    assert main(["evaluate", *files, "--targets", str(tmp_path / "few.json")]) == 2
    assert "targets: expected a JSON list of 6 integers" in capsys.readouterr().err
    assert main(["evaluate", "--config", "demo", "--protocol", "group_max"]) == 2
    assert "a run has --data.protocol=" in capsys.readouterr().err
    assert main(["evaluate", *files, "--targets", str(tmp_path / "targets.json"), "--protocol", "group_max"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["all"]
    scores = ModelConfig().scorer()(text, video)
    assert found == rounded(mg.retrieval_metrics(scores, torch.tensor([0, 0, 1, 1, 2, 2]), "group_max"))
    text = (tmp_path / "out" / "metrics.json").read_text()
    written = re.findall(r"\d+\.\d+", text[: text.index('"environment"')])
    assert "33.333333" in written and max(map(len, written)) < 12


def test_a_correction_of_hubness_is_named_wherever_it_is_shown(tmp_path: Path, capsys: Any):
    torch.manual_seed(0)
    text = mg.Features(sentence=torch.randn(6, 8), word=torch.randn(6, 5, 8))
    video = mg.Features(video=torch.randn(6, 8), frame=torch.randn(6, 4, 8))
    text.save(tmp_path / "text.pt")
    video.save(tmp_path / "video.pt")
    out = tmp_path / "out"
    asked = ["evaluate", "--text", f"{tmp_path}/text.pt", "--video", f"{tmp_path}/video.pt", "--out", str(out)]
    assert main(asked) == 0
    assert "transductive" not in capsys.readouterr().out
    plain = (out / "metrics.json").read_bytes()
    assert json.loads(plain)["hubness"] is None

    assert main([*asked, "--hubness", "sinkhorn"]) == 0
    assert "corrected by sinkhorn (transductive)" in " ".join(capsys.readouterr().out.split())
    assert (out / "metrics.json").read_bytes() == plain
    found = json.loads((out / "sinkhorn" / "metrics.json").read_text())
    assert found["hubness"] == {"correction": "sinkhorn", "transductive": True}
    scores = ModelConfig().scorer()(text, video)
    t2v, v2t = mg.hubness.sinkhorn(scores), mg.hubness.sinkhorn(scores.T)
    assert found["metrics"]["all"]["t2v"] == rounded(mg.retrieval_metrics(t2v)["t2v"])
    assert found["metrics"]["all"]["v2t"] == rounded(mg.retrieval_metrics(v2t)["t2v"])
    lines = [json.loads(line) for line in (out / "sinkhorn" / "rankings.jsonl").read_text().splitlines()]
    for line, row, rank in zip(lines, [*t2v, *v2t], [*mg.metrics.ranks(t2v), *mg.metrics.ranks(v2t)], strict=True):
        assert line["rank"] == rank
        assert [item["item"] for item in line["found"]] == [str(i) for i in row.argsort(descending=True).tolist()]
    with pytest.raises(SystemExit):
        main([*asked, "--hubness", "dsl"])
    assert "invalid choice: 'dsl'" in capsys.readouterr().err
