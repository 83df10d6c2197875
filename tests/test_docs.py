"""What the documentation shows is run: every Python fence of a page in one process, and every docstring example."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import multigrain as mg
from multigrain import training
from multigrain.models.config import mixing_grains

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CORE = ["aggregators", "grains", "hubness", "losses", "metrics", "pairs", "poolers", "recipes", "reduce", "scorer"]
CORE += ["scoring", "tokens"]


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text())], ids=lambda page: page.name)
def test_fences_of_a_page_run(page: Path, tmp_path: Path) -> None:
    # In a process of their own: a page may register aggregators, which must not reach other tests.
    script = tmp_path / "page.py"
    script.write_text("\n".join(FENCE.findall(page.read_text())))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_and_settings_of_the_guide_are_read() -> None:
    """Every `multigrain train` of the page and each setting that it tells to append."""
    page = (ROOT / "docs/guides/reproduce.md").read_text()
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("multigrain train")]
    assert len(commands) == 1
    words = commands[0]
    name, overrides = words[words.index("--config") + 1], [word for word in words if "=" in word]
    appended = [shlex.split(setting) for setting in re.findall(r"`(--(?:model|stages|precision)[^`]*)`", page)]
    assert len(appended) >= 14
    for settings in [overrides, *appended]:
        config = training.load_config(name, settings)
        assert config.model.scorer() is not None
    configs = set(re.findall(r"`(xclip_\w+_b\d\d)`", page))
    assert len(configs) == 10
    for config in configs:
        assert training.load_config(config).stages[0].optimizer.tower_learning_rate == 1e-7
    [grains] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    settings = [f"--model.grains={yaml.safe_load(grains)['model']['grains']}"]
    assert training.load_config(name, settings).model.grains == mixing_grains(32, 12)


def test_docstring_examples_run() -> None:
    modules = [importlib.import_module(f"multigrain.{name}") for name in CORE]
    for package in [module for module in modules if hasattr(module, "__path__")]:
        modules += [
            importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)
        ]
    results = [doctest.testmod(module, extraglobs={"mg": mg, "torch": torch}) for module in modules]
    assert sum(result.attempted for result in results) >= 10
    assert sum(result.failed for result in results) == 0
