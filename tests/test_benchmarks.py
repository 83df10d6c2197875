"""The benchmarks run, refuse where a candidate is wrong, and say on the page what their results say."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import cuda, memory
from benchmarks.harness import headline, machine, measure, probe, report
from benchmarks.harness.measure import ParityError
from benchmarks.harness.records import Check, Figure, Result, Timing, at_least, at_most, figure
from benchmarks.harness.registry import Benchmark, Run, Shape, benchmarks, studies
from benchmarks.harness.study import StudyResult
from multigrain.kernels.blocked import scores as blocked

ALL = benchmarks()
ON_CPU = [name for name, benchmark in ALL.items() if benchmark.group == "cpu"]
ON_CUDA = [name for name, benchmark in ALL.items() if benchmark.group == "cuda"]
# Other people's packages warn as they are imported.
pytestmark = pytest.mark.filterwarnings("default")


def unmatched(benchmark: Benchmark, figures: set[str]) -> set[str]:
    """Targets that no figure answers to, but for those of candidates that quick runs or this machine leave out."""
    optional = ("compiled", "maxsim-cpu", "late-interaction-kernels", "flash-maxsim")
    return {name for name in benchmark.targets if name not in figures and not name.endswith(optional)}


@pytest.mark.parametrize("name", ON_CPU)
def test_a_quick_run_leaves_a_valid_result(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name, "--quick", "--results", str(tmp_path)]) == 0
    [path] = tmp_path.glob("*.json")
    result = Result.load(path)
    assert (result.name, result.device, result.quick) == (name, "cpu", True)
    assert result.save(tmp_path / "again").read_text() == path.read_text()
    assert result.machine["cpu"] and result.machine["cores"] and result.machine["threads"] == torch.get_num_threads()
    assert result.versions["torch"] == torch.__version__ and result.commit and result.date
    for section in result.sections:
        assert section.checks and section.figures
        assert all(check.error <= check.tolerance for check in section.checks)
        assert all(f.low <= f.value <= f.high and f.value > 0 for f in section.figures if "exponent" not in f.name)
        assert all(f.met is None for f in section.figures)  # quick sizes have no targets
        assert all(len(t.seconds) == result.rounds or t.note for t in section.timings)
    assert unmatched(ALL[name], {f.name for s in result.sections for f in s.figures}) == set()
    assert "median (quartiles)" in capsys.readouterr().out
    assert f"## {ALL[name].title}" in report.render([result])


@pytest.mark.parametrize("name", ["cuda_aosm", "cuda_maxsim"])
def test_what_is_meant_for_a_gpu_runs_at_all(name: str) -> None:
    run = Run("cpu", quick=True)
    sections = [section for shape in ALL[name].quick for section in ALL[name].op(shape, run)]
    assert unmatched(ALL[name], {f.name for s in sections for f in s.figures}) == set()


@pytest.mark.parametrize("prepare", [cuda.prepare_step, partial(memory.prepare, who="multigrain")])
def test_the_tasks_for_a_gpu_run_at_all(prepare: Callable[..., probe.Task]) -> None:
    task = prepare(Shape(64, 64, dim=32, dtype="bfloat16"), "cpu")
    task.warm_up()
    assert task.check(task.call())


@pytest.mark.parametrize("name", ["aosm", "lengths", "four_grains", "scaling", "maxsim"])
def test_no_figure_where_a_candidate_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = blocked.forward
    monkeypatch.setattr(blocked, "forward", lambda *arguments: right(*arguments) * 1.001)
    assert main(["run", name, "--quick", "--results", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
    assert f"{name}: parity failed, nothing is reported: " in capsys.readouterr().err


def test_no_figure_without_the_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "cuda"]) == 2
    assert capsys.readouterr().err.count("needs a CUDA device") == len(ON_CUDA)


def test_parity_is_relative_and_sees_nan() -> None:
    expected = torch.tensor([100.0, 0.0])
    assert measure.check("a", (expected + 0.01,), (expected,), 1e-3).error == pytest.approx(1e-4, rel=1e-2)
    for wrong in (expected + 1, expected * float("nan"), expected[:1]):
        with pytest.raises(ParityError, match="a: "):
            measure.check("a", (wrong,), (expected,), 1e-3)


def test_interleaved_rounds_and_their_ratio() -> None:
    order: list[str] = []
    timings = measure.interleave({name: lambda n=name: order.append(n) for name in "ABC"}, 2, "cpu")
    assert "".join(order) == "ABCABCABC"  # the first round is not counted
    assert [len(timing.seconds) for timing in timings] == [2, 2, 2]
    a, b = Timing("a", [1.0, 2.0, 9.0]), Timing("b", [1.0, 1.0, 3.0])
    assert measure.ratio("a / b", a, b) == Figure("a / b", 2.0, 1.5, 2.5)
    assert measure.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_targets_are_judged() -> None:
    assert [Figure("x", v, v, v, target=at_most(2)).met for v in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [Figure("x", v, v, v, target=at_least(2)).verdict for v in (1.9, 2.0)] == ["**missed**", "met"]
    assert figure("x", [1.0]).met is None


MEGABYTES = 64


def holding(shape: Shape, device: str, wrong: str) -> probe.Task:
    """A task that needs 64 MB beyond the 32 MB that it returns."""

    def call() -> tuple[torch.Tensor]:
        held = torch.ones(MEGABYTES * 250_000)
        return (held[::2].clone(),)

    def check(outputs: tuple[torch.Tensor, ...]) -> list[Check]:
        return [measure.check("holding", outputs, (outputs[0] + float(wrong),), 0.1)]

    return probe.Task(lambda: torch.ones(10), call, check)


def test_the_probe_finds_what_a_call_holds() -> None:
    found = probe.peak(holding, Shape(1, 1), "cpu", wrong="0")
    assert MEGABYTES <= found.bytes / 1e6 < MEGABYTES + 8


def test_the_probe_passes_a_refusal_on() -> None:
    with pytest.raises(ParityError, match="holding: relative error"):
        probe.peak(holding, Shape(1, 1), "cpu", wrong="1")


def test_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    page, small = tmp_path / "benchmarks.md", tmp_path / "small.md"
    pages = [report.PAGE.with_name(study.page) for study in studies().values()]
    for original in pages:
        (tmp_path / original.name).write_text(original.read_text())
    for original in headline.PAGES:
        small.write_text(original.read_text())
        assert main(["report", "--page", str(page), "--headline", str(small)]) == 0
        assert small.read_text() == original.read_text(), "run: python -m benchmarks report"
    for original in (report.PAGE, *pages):
        assert (tmp_path / original.name).read_text() == original.read_text(), "run: python -m benchmarks report"
    small.write_text("no marks")
    with pytest.raises(ValueError, match="expected the two lines"):
        main(["report", "--page", str(page), "--headline", str(small)])


def test_results_in_the_repository_are_whole() -> None:
    for path in report.RESULTS.glob("*.json"):
        if path.stem in studies():
            study = StudyResult.load(path)
            assert not study.quick and len(study.setup["seeds"]) >= 3
            continue
        result = Result.load(path)
        assert not result.quick and result.name in ALL
        for section, entry in zip(result.sections, json.loads(path.read_text())["sections"], strict=True):
            assert [f.met for f in section.figures] == [f["met"] for f in entry["figures"]]
            if result.device == ALL[result.name].group:
                assert all(f.target == ALL[result.name].targets.get(f.name) for f in section.figures)


def test_the_commit_says_whether_the_tree_differs() -> None:
    head, _, dirty = machine.commit().partition("-")
    assert head == "unknown" or (len(head) == 40 and dirty in ("", "dirty"))
