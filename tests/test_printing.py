"""What names, captions and errors of others can do to a terminal: be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import multigrain as mg
from multigrain import checks, cli
from multigrain.checks import printable
from multigrain.cli import commands
from multigrain.cli.console import Bars, print_table
from multigrain.gallery.collection import Collection
from multigrain.gallery.extraction import ExtractionReport
from multigrain.gallery.query import Result
from multigrain.training import Progress

EVIL = "[/x][red]\x1b]0;title\x07\x1b[31m\n  1  0.99  forged\r\u202egnp\udce9:smile:"
SAFE = r"[/x][red]\x1b]0;title\x07\x1b[31m\n  1  0.99  forged\r\u202egnp\udce9:smile:"


def test_what_would_act_is_escaped_and_the_rest_is_as_it_is():
    assert printable(EVIL) == SAFE
    assert printable(Path("a\x9b\x00b")) == r"a\x9b\x00b"
    for text in ("größer", "犬が 走る\u3000", "👩\u200d🚀", "שלום", "a\\b [0]"):
        assert printable(text) == text


def test_a_report_of_an_extraction_has_a_line_for_each_video():
    lines = str(ExtractionReport(Path(EVIL), 2, 1, {EVIL: f"no video: {EVIL}"}, 0)).split("\n")
    assert len(lines) == 3
    assert lines[2] == f"  {SAFE}: no video: {SAFE}"


def test_the_list_of_broken_videos_has_a_line_for_each(tmp_path: Path):
    Collection(tmp_path, {}).append(None, [], {EVIL: EVIL})
    assert (tmp_path / "broken.txt").read_text() == f"{SAFE}\t{SAFE}\n"


def test_search_prints_a_line_for_each_video(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(commands.runs, "load_model", lambda *_: None)
    monkeypatch.setattr("multigrain.gallery.query.search", lambda *_, **__: [Result(EVIL, 0.5, {EVIL: 0.25})])
    options = SimpleNamespace(model="m", architecture=None, trust=[], sentence="x", features="f", k=1)
    commands.run_search(options, [])  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"  1  0.5000  {SAFE}  {SAFE} 0.250\n"


def test_tables_and_bars_take_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    torch.manual_seed(0)
    metrics = mg.retrieval_metrics(torch.randn(4, 4))
    name = "[/x]:a:\x1b"
    print_table({name: metrics, "all": metrics}, 4, f"title {name}")
    out = capsys.readouterr().out
    assert r"title [/x]:a:\x1b" in out
    assert out.count(r"[/x]:a:\x1b") == 2
    for live in ("0", "1"):
        monkeypatch.setenv("FORCE_COLOR", live) if live == "1" else monkeypatch.delenv("FORCE_COLOR", raising=False)
        with Bars([EVIL]) as bars:
            for _ in range(2):
                bars.training(Progress(EVIL, 1, 1, 2, 2, 0.5, 1.0, 1e-3, 1.0))
        error = capsys.readouterr().err
        assert "[/x][red]" in error
        assert "\x1b]0;" not in error
        assert "\u202e" not in error


def test_errors_and_warnings_are_one_line_of_a_few_hundred_letters(capsys: Any):
    assert cli.main(["search", "x", "--in", EVIL.replace("\x00", ""), "--model", EVIL]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert r"\x1b]0;title" in error
    assert cli.main(["search", "x", "--in", "a" * 5000]) == 2
    assert len(capsys.readouterr().err) < 500


def test_a_name_that_the_terminal_cannot_write_ends_nothing(tmp_path: Path):
    code = (
        "import sys\nfrom multigrain import cli\nfrom multigrain.cli import commands\n"
        "commands.run_search = lambda *_: print('gr\\xfc\\udce9')\n"
    )
    code += "sys.exit(cli.main(['search', 'x', '--in', 'y']))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == rb"gr\xfc\udce9" + b"\n"


def test_the_escapes_are_those_of_python():
    assert {c: printable(c) for c in "\t\x7f\u2028"} == {"\t": r"\t", "\x7f": r"\x7f", "\u2028": r"\u2028"}
    assert checks.printable("") == ""
