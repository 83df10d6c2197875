"""What the documentation shows is run: every Python fence of a page in one process, and every docstring example.

The site is built, every link and anchor resolved, and every public name has its place on a page of the API.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import zlib
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml

import multigrain as mg
from multigrain import training
from multigrain.models.config import mixing_grains
from tests.test_architecture import LAYERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CORE = [
    "aggregators",
    "cross_encoder",
    "explain",
    "grains",
    "heads",
    "hubness",
    "losses",
    "metrics",
    "recipes",
    "reduce",
]
CORE += ["scorer", "scoring", "similarity", "tokens"]
LEAVES = ["aggregators", "grains", "heads", "hubness", "losses", "metrics"]  # with an `__all__`
LEAVES += ["evaluation", "gallery", "models", "recipes", "training", "viz"]
PARTNERS = ["clip4clip", "open_clip", "pytorch_metric_learning", "sentence_transformers", "transformers"]


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text())], ids=lambda page: page.name)
def test_fences_of_a_page_run(page: Path, tmp_path: Path) -> None:
    # In a process of their own: a page may register aggregators, which must not reach other tests.
    script = tmp_path / "page.py"
    script.write_text("\n".join(FENCE.findall(page.read_text())))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_code_fits_its_page() -> None:
    """A screen of 1280 pixels shows 104 columns of code; longer lines would have to be scrolled."""
    fences = re.compile(r"^```[a-z]+\n(.*?)^```", re.MULTILINE | re.DOTALL)
    code = {str(page): "\n".join(fences.findall(page.read_text())) for page in PAGES}
    assert [(name, line) for name in code for line in code[name].split("\n") if len(line) > 104] == []


def public_names() -> set[str]:
    """As they are imported: those of the package, of the leaves, and of the modules of interop."""
    names = {f"multigrain.{name}" for name in mg.__all__ if not inspect.ismodule(getattr(mg, name))}
    for leaf in LEAVES:
        names |= {f"multigrain.{leaf}.{name}" for name in importlib.import_module(f"multigrain.{leaf}").__all__}
    for partner in PARTNERS:
        module = importlib.import_module(f"multigrain.interop.{partner}")
        own = {name for name, value in vars(module).items() if inspect.getmodule(value) is module}
        names |= {f"{module.__name__}.{name}" for name in own if not name.startswith("_")}
    return names


def test_the_site_is_whole(tmp_path: Path) -> None:
    """A warning is an error: a link, an anchor or a cross-reference that leads nowhere, a page without a way to it."""
    # Not --quiet: it also keeps warnings from being counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, entries = (tmp_path / "objects.inv").read_bytes().partition(b"zlib.\n")
    documented = {line.split()[0]: line.split()[3] for line in zlib.decompress(entries).decode().splitlines()}
    assert sorted(public_names() - documented.keys()) == []
    assert all(place.startswith("api/") for place in documented.values())
    # A reader's browser asks nobody else.
    fetched = re.compile(r'<(?:script|img|link rel="(?:stylesheet|preconnect)")[^>]+(?:src|href)="https?://')
    assert [page for page in tmp_path.rglob("*.html") if fetched.search(page.read_text())] == []


def test_figures_are_those_of_their_scripts(tmp_path: Path) -> None:
    """One script for each figure, and each figure on a page; `make figures` draws them, here without the slowest."""
    figures = {path.stem for path in (ROOT / "docs/assets").glob("*.svg")}
    assert figures == {path.stem for path in (ROOT / "docs/figures").glob("*.py")} - {"__main__", "style"}
    shown = {name for page in PAGES for name in re.findall(r"assets/(\w+)\.svg", page.read_text())}
    assert shown == figures
    quick = sorted(figures - {"precision", "evaluation"})
    command = [sys.executable, ROOT / "docs/figures", tmp_path, *quick]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.iterdir()) == quick


def test_the_page_on_architecture_shows_this_tree() -> None:
    """Every file and folder of the package with its layer, and functions that exist."""
    page, package = (ROOT / "docs/architecture.md").read_text(), ROOT / "multigrain"
    lines = re.findall(r"^    ([ \d]{2})  (\w+)(/| |\.py) +\S", page, re.MULTILINE)
    layers = {name: number for number, layer in enumerate(LAYERS, 1) for name in layer}
    assert {name: int(number) for number, name, _ in lines if number.strip()} == layers
    entries = {path.stem for path in package.iterdir() if path.name not in ("__pycache__", "__init__.py", "py.typed")}
    assert sorted(name for _, name, _ in lines) == sorted(entries)
    paths = re.findall(r"`(\w[\w/]+\.py)`", page)
    assert [path for path in paths if not ((package / path).exists() or (ROOT / path).exists())] == []
    named = re.findall(r"`(\w[\w/]+)\.py`\s+`([\w.]+)`", page)
    assert len(named) > 15
    for path, name in named:
        attrgetter(name)(importlib.import_module(f"multigrain.{path.replace('/', '.')}"))


def test_settings_of_the_guide_to_swapping_are_read() -> None:
    page = (ROOT / "docs/guides/swap.md").read_text()
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("multigrain train")]
    assert len(commands) == 2
    for words in commands:
        settings = [word for word in words if "=" in word]
        assert training.load_config(words[words.index("--config") + 1], settings).model.scorer() is not None
    [grains] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    settings = [f"--model.grains={yaml.safe_load(grains)['model']['grains']}"]
    assert isinstance(training.load_config("demo", settings).model.scorer().grains[1].aggregator, mg.aggregators.TopK)


def test_commands_and_settings_of_the_guide_are_read() -> None:
    """Every `multigrain train` of the page and each setting that it tells to append."""
    page = (ROOT / "docs/guides/reproduce.md").read_text().replace("\\\n", "")
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
