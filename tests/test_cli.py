"""The command line: what it says about wrong input, how fast it starts, and jobs from YAML."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from multigrain import __version__, training
from multigrain.cli import main

ROOT = Path(__file__).parent.parent
AOSM = {"class_path": "multigrain.AOSM", "init_args": {"temperature": 0.1}}
GRAINS = [
    {"query": "sentence", "candidate": "video"},
    {"query": "word", "candidate": "video", "aggregator": AOSM},
    {"query": "sentence", "candidate": "frame", "aggregator": AOSM},
    {"query": "word", "candidate": "frame", "aggregator": AOSM},
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of pairs of either kind, generated once."""
    return tmp_path_factory.mktemp("cache")


def write_config(path: Path, cache: Path, grains: list[dict[str, Any]] = GRAINS, epochs: int = 1) -> Path:
    small = {"img_size": 56, "patch_size": 28, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = {
        "data": {"cache": str(cache), "pairs": 250, "single": 250, "val": 20, "test": 40},
        "model": {
            "vision": {"name": "vit_tiny_patch16_224", "kwargs": small},
            "text": {"width": 16, "depth": 1, "heads": 2},
            "dim": 16,
            "grains": grains,
        },
        "stages": [
            {"name": "towers", "task": "frames", "epochs": 1},
            {"name": "grains", "task": "videos", "epochs": epochs, "max_frames": 4},
        ],
        "validation_pairs": 20,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"multigrain {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from multigrain.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
print(sorted({"timm", "matplotlib", "rich", "yaml", "minigrid", "torchvision"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: multigrain")
    assert run.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dmo"], "invalid choice: 'dmo'"),
        (["demo", "--workers", "0"], "--workers: expected an integer of at least 1, got '0'"),
        (["demo", "--seed", "-1"], "--seed: expected an integer of at least 0, got '-1'"),
        (["demo", "--fast"], "demo takes no --fast"),
        (["train"], "required: --config"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    line = said(capsys)
    assert line.startswith("multigrain: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "dmo"], "expected a YAML file or one of demo, recipes/albef, "),
        (["train", "--config", "demo", "--nonsense=3"], "nonsense: no such setting; there are data, model, stages, "),
        (["train", "--config", "demo", "--seed=abc"], "abc"),
        (["train", "--config", "demo", "--model.grains=[{query: word, candidate: frame, aggregator: men_max}]"],
         "expected one of mean_mean, mean_max, max_mean, max_max, max_sim, logsumexp, aosm, "),
        (["train", "--config", "demo", "--data.test=9000"],
         "val, test: expected together fewer than the 9500 pairs, got 10000"),
        (["train", "--config", "demo", "--stages.1.max_frames=50"], "max_frames: expected at most 12"),
        (["train", "--config", "demo", "--model.text.heads=3"], "heads: expected a divisor of width 128, got 3"),
        (["evaluate", "--config", "demo", "--model", "x", "--model.aggregator=max_max"],
         "--model.aggregator=max_max: expected no setting of the model beside --model"),
        (["evaluate"], "expected --config, --out or both"),
        (["evaluate", "--config", "demo"], "expected the folder of a finished training"),
    ],
)  # fmt: skip
def test_wrong_settings(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = said(capsys)
    assert line.startswith("multigrain: error: ")
    assert message in line
    assert not Path("runs/data").exists()  # said before pairs are generated


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--quick"], ["train", "--config", "demo"]])
def test_an_unwritable_folder(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([*arguments, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "--out: expected a folder that can be written to" in said(capsys)


@pytest.mark.parametrize(
    ("package", "extra"), [("minigrid", "demo"), ("timm", "models"), ("safetensors", "models"), ("matplotlib", "viz")]
)
def test_a_missing_extra(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert said(capsys) == f'multigrain: error: {package} is not installed: pip install "multigrain[{extra}]"'


def test_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIGRAIN_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["train", "--config", "dmo"])


@pytest.mark.filterwarnings("default:.*going on from the one before")
def test_train_and_evaluate_from_yaml(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grains = [grain for grain in GRAINS if grain != GRAINS[1]]  # one grain dropped, one aggregator swapped
    grains[2] = {**grains[2], "aggregator": "mean_max"}
    config = str(write_config(tmp_path / "three.yaml", cache, grains))
    assert main(["train", "--config", config, "--workers", "1", "--model.frame_source=temporal"]) == 0
    assert json.loads(Path("runs/three/config.json").read_text())["model"]["frame_source"] == "temporal"
    assert main(["evaluate", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "40 sentences against 40 videos" in out
    assert "all three" in out
    assert out.endswith("Open runs/three/index.html\n")
    results = json.loads(Path("runs/three/metrics.json").read_text())
    assert list(results["metrics"]) == ["sentence-video", "sentence-frame", "word-frame", "all"]
    assert results["chance"]["t2v"]["R@1"] == 2.5
    assert results["seconds"].keys() >= {"pairs", "training towers", "training grains", "evaluation"}
    assert "MeanMax(direction='both')" in unescape(Path("runs/three/index.html").read_text())

    assert main(["explain", "--model", "runs/three", "--pair", "17", "--out", "why.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["sentence-video", "sentence-frame", "word-frame", "together"]
    assert lines[5:] == ["word-video: not part of this score, similarities alone", "Open why.png"]
    assert Path("why.png").stat().st_size > 10_000

    # The same weights under another aggregator leave the results of the training alone.
    before = Path("runs/three/metrics.json").read_bytes()
    one = "--model.grains=[{query: word, candidate: frame, aggregator: max_max}]"
    assert main(["evaluate", "--out", "runs/three", one]) == 0
    assert "scored by other grains or aggregators than in training; leave out --config" in capsys.readouterr().err
    assert Path("runs/three/metrics.json").read_bytes() == before
    assert list(json.loads(Path("runs/three/rescored/metrics.json").read_text())["metrics"]) == ["word-frame", "all"]

    assert main(["evaluate", "--out", "runs/three", "--hubness", "dual_softmax"]) == 0
    assert "corrected by dual_softmax (transductive)" in " ".join(capsys.readouterr().out.split())
    assert Path("runs/three/metrics.json").read_bytes() == before
    corrected = json.loads(Path("runs/three/dual_softmax/metrics.json").read_text())
    assert corrected["hubness"] == {"correction": "dual_softmax", "transductive": True}

    assert main(["evaluate", "--out", "runs/three", "--model.masked=false"]) == 2
    assert "--model.masked=false: evaluation takes settings of data, device" in capsys.readouterr().err

    assert main(["evaluate", "--out", "runs/three", "--data.seed=1"]) == 2
    error = capsys.readouterr().err
    assert "data.seed: expected 0, with which runs/three was trained, got 1; leave out --config" in error

    Path("runs/three/model/model.safetensors").write_bytes(b"damaged")
    assert main(["evaluate", "--out", "runs/three"]) == 2
    assert "model.safetensors: damaged, or another file than was written" in capsys.readouterr().err

    again = ["train", "--config", config, "--workers", "1", "--model.frame_source=temporal"]
    Path("runs/three/checkpoint.pt").write_bytes(b"damaged")
    assert main(again) == 0  # and the damaged model is written again
    said = capsys.readouterr().err
    assert "checkpoint.pt: not a checkpoint of this version, or a damaged one" in said
    assert "going on from the one before, checkpoint.1.pt" in said
    assert main(["evaluate", "--out", "runs/three"]) == 0

    for path in Path("runs/three").glob("checkpoint*"):
        path.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(again) == 2
    assert "pass --no-resume to start anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.pt"), "a/b.pt: no space left on device"),
        (OSError(errno.EIO, "Input/output error"), "[Errno 5] Input/output error"),
        (MemoryError(), "not enough memory (smaller batches need less)"),
        (RuntimeError("[x.cpp] can't allocate memory"), "not enough memory (smaller batches need less) [x.cpp] can't"),
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory (smaller batches need less) CUDA out"),
        (RecursionError("maximum depth"), "expected values that are nested less deeply (maximum depth)"),
        (ValueError("long " * 1000), "long long"),
    ],
)
def test_whatever_a_machine_runs_out_of_is_one_short_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("multigrain.cli.commands.run_demo", fail)
    assert main(["demo"]) == 2
    assert (told := said(capsys)).startswith(f"multigrain: error: {line}")
    assert len(told) < 500


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigrain.cli.commands.run_demo", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(["demo"])


def test_a_number_of_thousands_of_digits_is_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["search", "a", "--in", "x", "-k", "9" * 5000])
    assert (stop.value.code, len(said(capsys)) < 550) == (2, True)


@pytest.mark.parametrize("command", [["-m", "multigrain.cli"], ["multigrain"]])
def test_ctrl_c_in_the_imports_is_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    (tmp_path / "multigrain").write_text("import sys; from multigrain.cli import main; sys.exit(main())")
    command = [str(tmp_path / name) if name == "multigrain" else name for name in command]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, *command, "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "multigrain: interrupted\n")


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "multigrain.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def interrupt_at(process: subprocess.Popen[str], wanted: str) -> str:
    """Ctrl-C when a line with this text appears on stderr; returns all that stderr said."""
    assert process.stderr is not None
    guard = threading.Timer(200, process.kill)
    guard.start()
    lines: list[str] = []
    with process:
        for line in process.stderr:
            lines.append(line)
            if wanted in line:
                process.send_signal(signal.SIGINT)
                wanted = "\0"
    guard.cancel()
    return "".join(lines)


def test_ctrl_c_in_training_and_resumption(tmp_path: Path, cache: Path) -> None:
    config = write_config(tmp_path / "long.yaml", cache, epochs=15)
    arguments = ["train", "--config", str(config), "--out", str(tmp_path / "run"), "--workers", "1"]
    stopped = start(arguments)
    error = interrupt_at(stopped, "grains: epoch 2/15")
    assert stopped.returncode == 130
    assert error.endswith(f"this goes on from there: multigrain {' '.join(arguments)}\n")
    assert "Traceback" not in error
    assert training.load_config(tmp_path / "run" / "config.json").stages[1].epochs == 15
    done = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    resumed = start(arguments)
    output, error = resumed.communicate(timeout=200)
    assert resumed.returncode == 0
    assert "towers" not in error
    assert f"grains: epoch {done[-1]['epoch']}/15" in error or f"grains: epoch {done[-1]['epoch'] + 1}/15" in error
    assert "grains: epoch 15/15" in error
    assert "training towers" in output  # the time of the first process counts


def test_ctrl_c_in_generation(tmp_path: Path) -> None:
    config = write_config(tmp_path / "small.yaml", tmp_path / "cache")
    stopped = start(["train", "--config", str(config), "--out", str(tmp_path / "run"), "--workers", "1"])
    error = interrupt_at(stopped, "1/2 shards")
    assert stopped.returncode == 130
    assert "Traceback" not in error
    assert "goes on from there" in error.splitlines()[-1]
    assert list((tmp_path / "cache").rglob("*.npz"))
