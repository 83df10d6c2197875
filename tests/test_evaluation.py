"""Evaluations of features: every figure is that of the whole matrix, which no more than one other is held beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multigrain as mg
from multigrain import metrics, training
from multigrain.evaluation.results import rankings

SCORER = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.FrameWord("max_mean"), weights=[0.5, 0.2, 0.3])


@st.composite
def captioned(draw: st.DrawFn, square: bool = False) -> tuple[mg.Features, mg.Features, torch.Tensor]:
    """Texts, videos and the video of each text; of coarse numbers and often the same item twice, so that many tie."""
    count = draw(st.integers(1, 6))
    extra = [] if square else draw(st.lists(st.integers(0, count - 1), max_size=8))
    targets = torch.tensor([*range(count)] if square else draw(st.permutations([*range(count), *extra])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))

    def numbers(items: int, *shape: int) -> torch.Tensor:
        rows = torch.tensor(draw(st.lists(st.integers(0, items - 1), min_size=items, max_size=items)))
        return torch.randn(items, *shape, generator=generator).round().double()[rows]

    n = len(targets)
    text = mg.Features(sentence=numbers(n, 3), word=numbers(n, 2, 3))
    return text, mg.Features(video=numbers(count, 3), frame=numbers(count, 2, 3)), targets


@pytest.mark.parametrize("protocol", ["diagonal", "all_captions", "group_max"])
@given(st.data(), st.integers(1, 40))
def test_property_figures_are_those_of_whole_matrices(protocol, data, elements):
    text, video, targets = data.draw(captioned(square=protocol == "diagonal"))
    given_targets = None if protocol == "diagonal" else targets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ELEMENTS", elements)
        found = training.evaluate_features(text, video, SCORER, given_targets, protocol)
    whole = {grain.name: mg.score_matrix(mg.MultiGrain(grain), text, video) for grain in SCORER.grains}
    total = torch.zeros_like(whole["word-frame"])
    for weight, matrix in zip(SCORER.weights, whole.values(), strict=True):
        total.add_(matrix, alpha=weight)
    whole["all"] = total
    assert found.metrics == {name: mg.retrieval_metrics(x, given_targets, protocol) for name, x in whole.items()}
    assert list(found.scores) == ["all"]
    assert torch.equal(found.scores["all"], whole["all"])


def test_rankings_are_those_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    text = mg.Features(sentence=torch.randn(9, 4, generator=generator), word=torch.randn(9, 2, 4, generator=generator))
    video = mg.Features(video=torch.randn(3, 4, generator=generator), frame=torch.randn(3, 2, 4, generator=generator))
    targets, names = torch.arange(9) % 3, list("abcdefghi")
    found = training.evaluate_features(text, video, SCORER, targets, "all_captions")
    lines = list(rankings(found, names, list("xyz"), k=2))
    for line, row, rank, own in zip(
        lines, found.scores["all"], mg.metrics.ranks(found.scores["all"], targets), targets, strict=False
    ):
        best = row.topk(2)
        assert line["rank"] == rank
        assert [item["item"] for item in line["found"]] == ["xyz"[i] for i in best.indices]
        assert [item["own"] for item in line["found"]] == [i == own for i in best.indices]
    for j, line in enumerate(lines[9:]):
        best = found.scores["all"][:, j].topk(2)
        assert (line["query"], [item["item"] for item in line["found"]]) == ("xyz"[j], [names[i] for i in best.indices])
        assert [item["own"] for item in line["found"]] == [bool(targets[i] == j) for i in best.indices]
        own = found.scores["all"][:, j].masked_fill(targets != j, -2).max()
        assert line["rank"] == 1 + int((found.scores["all"][:, j] > own).sum())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("protocol", ["all_captions", "group_max"])
def test_two_matrices_are_held_at_a_time(tmp_path: Path, protocol: str):
    """20,000 texts x 1,000 videos: four grains and their sum would be 400 MB, and comparisons of them as much again."""
    program = f"""
import json, re, torch, multigrain as mg
from multigrain import cli
from multigrain.cli import commands

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024

text, video = (mg.Features(**{{a: torch.randn(n, 4), b: torch.randn(n, 2, 4)}}) for a, b, n in
               (("sentence", "word", 20_000), ("video", "frame", 1000)))
text.save("text.pt"), video.save("video.pt")
json.dump([i % 1000 for i in range(20_000)], open("targets.json", "w"))
mg.metrics.ranks(mg.score_matrix(commands.ModelConfig().scorer(), text[:300], video[:300]))  # what torch itself takes
before = memory("VmRSS")
files = ["--text", "text.pt", "--video", "video.pt", "--targets", "targets.json"]
assert cli.main(["evaluate", *files, "--protocol", {protocol!r}, "--out", "out"]) == 0
print("beyond", (memory("VmHWM") - before) / (4 * 20_000 * 1000))
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    matrices = float(found.stdout.split("beyond ")[1])
    assert matrices < 4  # two, blocks and what torch keeps; all grains at a time are more than nine
