"""Studies leave what they did where it is found again, and their pages say what their results say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import ablation, ablation_page, recipes
from benchmarks.cases.ablation_tables import FOUR, TABLES
from benchmarks.harness import pretrained, report, study
from benchmarks.harness.intervals import difference, interval
from benchmarks.harness.registry import studies
from benchmarks.harness.study import StudyResult
from multigrain import training
from multigrain.recipes import names as registered

DEMO = training.load_config("demo").model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one quick run was done."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "ablation", "--quick", "--workers", "0"]) == 0
    return folder


def test_a_quick_run_leaves_a_valid_result(folder: Path) -> None:
    path = folder / "runs/benchmarks/ablation.json"
    result = StudyResult.load(path)
    assert result.save(folder / "again").read_text() == path.read_text()
    assert (result.quick, result.device, result.setup["sizes"]["test"]) == (True, "cpu", study.QUICK.test)
    assert {(run["variant"], run["seed"]) for run in result.runs} == {
        (name, seed) for name in ablation.STUDY.quick for seed in study.QUICK.seeds
    }
    for run in result.runs:
        assert all(0 <= run["metrics"][way]["R@1"] <= 100 for way in ("t2v", "v2t"))
        assert run["cpu_seconds"]["training"] > 0 and run["parameters"] > 1000 and run["commit"]
        assert 0 < run["loss"] < 5
    page = ablation_page.render(result)
    assert page.count("± ") > len(result.runs) and "quick sizes, 8 runs" in page


def test_what_is_done_is_not_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = StudyResult.load(folder / "runs/benchmarks/ablation.json")
    kept = {path: path.stat().st_mtime_ns for path in (folder / "runs/benchmarks/ablation").rglob("*.json")}
    lost = min(kept)
    text = lost.read_text()
    lost.unlink()
    assert main(["run", "ablation", "--quick", "--workers", "0"]) == 0
    assert "8 runs, 7 done before" in capsys.readouterr().err
    assert [path for path, time in kept.items() if path.stat().st_mtime_ns != time] == [lost]
    # The same run again: the same figures.
    assert json.loads(lost.read_text())["metrics"] == json.loads(text)["metrics"]
    after = StudyResult.load(folder / "runs/benchmarks/ablation.json")
    assert [run["metrics"] for run in after.runs] == [run["metrics"] for run in before.runs]


def test_an_interrupt_loses_the_run_in_flight(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    done = list((folder / "runs/benchmarks/ablation").glob("*/seed-0.json"))
    for path in done:
        path.unlink()
    right, calls = pretrained.train_and_score, []

    def third_is_interrupted(*arguments: object) -> dict[str, object]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(pretrained, "train_and_score", third_is_interrupted)
    assert main(["run", "ablation", "--quick", "--workers", "0"]) == 130
    assert "stopped with 6 of 8 runs done" in capsys.readouterr().err
    assert sum(path.is_file() for path in done) == 2
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(["run", "ablation", "--quick", "--workers", "1"]) == 0  # the rest, in another process


def test_other_settings_have_other_folders(tmp_path: Path) -> None:
    variants = ablation.variants(study.SETUP.config())
    folders = {name: study.folder_of(tmp_path, "a", config) for name, config in variants.items()}
    assert len(set(folders.values())) == len(variants)
    fewer = ablation.variants(replace(study.SETUP, epochs=2).config())
    assert study.folder_of(tmp_path, "a", fewer[FOUR]) != folders[FOUR]
    elsewhere = ablation.variants(replace(study.SETUP, cache="elsewhere", seeds=(7, 8)).config())
    assert study.folder_of(tmp_path, "a", elsewhere[FOUR]) == folders[FOUR]


def test_variants_of_the_ablation_are_those_of_its_tables() -> None:
    variants = ablation.models(DEMO)
    assert {row.variant for table in TABLES for row in table.rows} == set(variants)
    assert len(TABLES[0].rows) == 15 == len({frozenset(row.label.split("+")) for row in TABLES[0].rows})
    # One thing is changed, or none.
    for name, settings in variants.items():
        changed = {key for key, value in asdict(settings).items() if value != asdict(DEMO)[key]} - {"grains"}
        assert len(changed) == (name not in {row.variant for row in TABLES[0].rows}), name
        assert settings.scorer() is not None
    for settings, name in zip((variants["SF+VW"], variants["VS"]), ("sentence-frame", "sentence-video"), strict=True):
        assert settings.scorer().grains[0].name == name


def test_intervals_are_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5))
    assert difference([11.0, 22.0, 33.0], [10.0, 21.0, 32.0]) == (1.0, 0.0)
    assert [difference([1.0, 2.0], [0.0, 0.0]).sign, difference([-5.0, -5.1], [0.0, 0.0]).sign] == [0, -1]
    assert difference([1.0, 1.5], [2.0, 2.5]).signed == "−1.0 ± 0.0"
    with pytest.raises(ValueError, match="2 to 11 seeds, got 1"):
        interval([1.0])


def result_of(recalls: dict[str, list[float]]) -> StudyResult:
    """A result with these figures of the seeds 0, 1, ..., the same in both directions."""
    runs = [
        {
            "variant": name,
            "seed": seed,
            "metrics": {way: {"R@1": value} for way in ("t2v", "v2t")},
            "cpu_seconds": {"training": 60.0},
            "date": "2026-01-01",
            "commit": "0" * 40,
        }
        for name, values in recalls.items()
        for seed, value in enumerate(values)
    ]
    setup = {
        "sizes": {"train": 100, "test": 50},
        "stages": [{"epochs": 5}, {"epochs": 3}],
        "seeds": list(range(len(next(iter(recalls.values()))))),
    }
    where = {"cpu": "a processor", "cores": 2, "threads": 1, "load_average_1min": 0.5, "gpu": None}
    return StudyResult("ablation", "cpu", False, "2026-01-01", "0" * 40, where, {"torch": "2"}, setup, runs)


def test_the_page_judges_by_its_intervals() -> None:
    figures = {
        FOUR: [40.0, 41.0, 42.0],
        "mean_mean": [30.0, 31.1, 32.2],  # below, as in the paper
        "max_max": [45.0, 46.1, 47.2],  # above, which the paper has the other way round
        "mean_max": [39.0, 41.0, 43.0],  # neither
        "unmasked": [39.0, 40.1, 40.9],
        "VS": [20.0, 20.0, 20.0],
    }
    page = ablation_page.render(result_of(figures))
    lines = page.splitlines()
    assert any(line.startswith("| AOSM over Mean-Mean | +3.6 | +9.9") and line.endswith("| holds |") for line in lines)
    assert any(line.startswith("| AOSM over Max-Max | +2.2 | −5.1") and line.endswith("| reversed |") for line in lines)
    assert any(line.startswith("Open: ") and "AOSM over Mean-Max (+0.0" in line for line in lines)
    assert any(line.startswith("| VS+SF+VW+FW over VS |") and line.endswith("| holds |") for line in lines)
    assert any(line.startswith("- **Masks**: masked is above unmasked (+1.0 ± ") for line in lines)
    assert "| VS | 43.0 | 43.0 | 36.0 | 35.7 | 20.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 0.0 |" in lines
    assert "3 epochs over 100 pairs" in page and "18 trainings affordable (18 minutes" in page
    # AOSM's three and three more: Mean-Mean is below both others as in the paper, and Mean-Max below Max-Max.
    summary = next(line for line in lines if line.startswith("- **Aggregators**: "))
    assert summary.startswith("- **Aggregators**: of 6 orderings of the paper, 3 hold (Mean-Max over Mean-Mean, ")
    assert "2 are reversed (Mean-Max over Max-Max, AOSM over Max-Max), 1 is open; 3 means are in its order." in summary


def test_the_section_of_recipes_compares_with_the_baseline() -> None:
    result = result_of({"filip": [30.0, 31.0, 32.0], "clip": [20.0, 21.1, 21.9], "drl": [20.0, 22.0, 22.0]})
    for run in result.runs:
        run |= {"batch_size": 16 if run["variant"] == "drl" else 64, "parameters_beside_towers": 1234}
        run["cpu_seconds"] = {"training": 60.0, "evaluation": 5.4}
    result.setup["stages"][1]["batch_size"] = 64
    marks = recipes.STUDY.marks
    assert marks is not None
    page = recipes.STUDY.rendered(result, f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    assert page == recipes.STUDY.rendered(result, page)
    lines = page.splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in page
    assert "batches of 64 (`drl`: 16)" in page
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["filip", "drl", "clip"]  # the best first
    assert "above |" in rows[0] and "open |" in rows[1] and rows[2].count("open") == 0
    assert rows[0].endswith("| 1,234 | 60 | 5 |")
    with pytest.raises(ValueError, match=r"recipes.md: expected the two lines"):
        recipes.STUDY.rendered(result, "a page without marks")


def test_variants_of_recipes_share_towers_and_data() -> None:
    base = study.SETUP.config()
    variants = recipes.variants(base)
    assert set(variants) == set(registered()) and list(variants)[-1] == "clipbert"
    for name, config in variants.items():
        assert config.model.recipe is not None and config.model.recipe.name == name
        assert (config.data, config.stages[0]) == (base.data, base.stages[0])
        assert config.stages[1] == replace(base.stages[1], batch_size=config.stages[1].batch_size)


def test_pages_are_those_of_the_results() -> None:
    for each in studies().values():
        path = report.RESULTS / f"{each.name}.json"
        if path.is_file():
            result = StudyResult.load(path)
            variants = each.variants(each.setup.config())
            assert not result.quick and {run["variant"] for run in result.runs} == set(variants)
            page = report.PAGE.with_name(each.page).read_text()
            assert page == each.rendered(result, page), "run: python -m benchmarks report"
