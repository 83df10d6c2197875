"""Who imports whom, what is public, what an import costs, and what an installation pulls in."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import multigrain as mg

ROOT = Path(__file__).parent.parent

# A module or folder imports from its own layer and from those above it in these lists, and from nothing else. The
# library is what a caller composes; the application is a client of it.
LIBRARY = (
    {"interrupts", "files", "checks"},
    {"tokens", "reduce"},
    {"aggregators", "distributed"},
    {"similarity"},
    {"kernels"},
    {"grains", "heads"},
    {"scorer", "cross_encoder"},
    {"explain", "scoring", "losses", "metrics", "hubness"},
    {"recipes"},
    {"interop"},
)
APPLICATION = (
    {"data"},
    {"models"},
    {"evaluation"},
    {"training", "gallery"},
    {"viz"},
    {"report"},
    {"cli"},
)
LAYERS = (*LIBRARY, *APPLICATION)
CORE = set[str]().union(*LIBRARY) - {"interop"}
KERNEL_USERS = {"kernels", "grains", "scorer"}
CORE_PACKAGES = {"torch", "einops", "jaxtyping"}
HEAVY = {"triton", "timm", "torchvision", "minigrid", "matplotlib", "transformers", "rich", "yaml"}

# The inventory of public names is the docs' own, a link to the API's pages: - [`Name`][multigrain.Name]: one sentence;
# or, by its module, - [`losses.Name`][multigrain.losses.Name]: one sentence.
INVENTORY = ROOT / "docs/api/index.md"
LINE = re.compile(r"^- \[`([\w.]+)`\](?:\[multigrain\.\1\]|\(\w+\.md\)): \S.*\.$", re.MULTILINE)
LISTED: list[str] = LINE.findall(INVENTORY.read_text())
PUBLIC = sorted(name for name in LISTED if "." not in name)


def imported(path: Path, package: Path) -> Iterator[str]:
    """Yield the dotted name of each import in a file, for type checkers and in functions too."""
    here = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from names


def imports(path: Path, package: Path) -> Iterator[tuple[str, str]]:
    """Yield (package, module directly below it or "") of each import in a file."""
    for name in imported(path, package):
        top, below, *_ = *name.split("."), ""
        yield top, below


def module_of(path: Path, package: Path) -> str:
    """Name the module or subpackage directly below the package that a file belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def allowed(module: str) -> set[str]:
    """Which modules of the package a module may import; `__init__` all of the core."""
    if module == "__init__":
        return CORE
    position = next(i for i, layer in enumerate(LAYERS) if module in layer)
    below = set[str]().union(*LAYERS[: position + 1]) | {"__init__"}
    return below if module in KERNEL_USERS else below - {"kernels"}


def wrong_arrows(package: Path) -> list[str]:
    """List the imports of a source tree that point the wrong way."""
    siblings = {module_of(path, package) for path in package.rglob("*.py")}
    wrong = []
    for path in sorted(package.rglob("*.py")):
        module = module_of(path, package)
        if not any(module in layer for layer in ({"__init__"}, *LAYERS)):
            wrong.append(f"{module} is in no layer: say which, in LIBRARY or APPLICATION")
            continue
        packages = CORE_PACKAGES | set(sys.stdlib_module_names) | ({"triton"} if module == "kernels" else set())
        for top, below in imports(path, package):
            if top == package.name and below in siblings - allowed(module):
                wrong.append(f"{path.relative_to(package.parent)} imports {below}")
            elif module not in CORE | {"__init__"}:
                continue
            elif top not in packages | {package.name}:
                wrong.append(f"{path.relative_to(package.parent)} imports {top}")
            elif (top, below) == ("torch", "distributed") and module != "distributed":
                wrong.append(f"{path.relative_to(package.parent)} imports torch.distributed")
    return wrong


def test_imports_point_one_way() -> None:
    assert wrong_arrows(ROOT / "multigrain") == []


def test_no_file_waits_for_itself() -> None:
    """No circle of imports between files, those for type checkers and in functions counted."""
    package = ROOT / "multigrain"
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in package.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        named = {part for full in imported(path, package) for part in (full, full.rpartition(".")[0])}
        graph[name] = (named & files.keys()) - {name, "multigrain"}
        # A face imports what it shows: who asks for one of its files does not ask for the face.
        graph[name] -= {part for part in graph[name] if name.startswith(f"{part}.")}
    list(TopologicalSorter(graph).static_order())  # or CycleError


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("reduce.py", "from .aggregators import AOSM", "imports aggregators"),
        ("scoring.py", "def f():\n    from . import cli", "imports cli"),
        ("checks.py", "if TYPE_CHECKING:\n    from . import cli", "imports cli"),
        ("scorer.py", "import multigrain.cli", "imports cli"),
        ("aggregators/base.py", "from .. import kernels", "imports kernels"),
        ("losses/infonce.py", "from ..cli import main", "imports cli"),
        ("losses/infonce.py", "import torch.distributed as dist", "imports torch.distributed"),
        ("__init__.py", "from .cli import main", "imports cli"),
        ("metrics.py", "import numpy as np", "imports numpy"),
        ("interop/clip4clip.py", "from ..models import XCLIP", "imports models"),
        ("models/xclip.py", "from ..training import train", "imports training"),
        ("helpers.py", "", "in no layer"),
    ],
)
def test_a_wrong_arrow_is_seen(tmp_path: Path, module: str, source: str, complaint: str) -> None:
    package = tmp_path / "multigrain"
    names = ("aggregators/__init__.py", "cli.py", "kernels/__init__.py", "models/__init__.py", "training.py", module)
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / module).write_text(source)
    [found] = wrong_arrows(package)
    assert complaint in found


def hasattr_of(path: str) -> bool:
    """Tell whether the package has something at a dotted path."""
    found: Any = mg
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is not None


def test_public_names() -> None:
    """Every public name has its line in the docs, and only public names have."""
    assert sorted(mg.__all__) == PUBLIC
    assert len(PUBLIC) <= 40
    assert len(LISTED) == len(set(LISTED)) == INVENTORY.read_text().count("\n- ")
    assert [name for name in LISTED if not hasattr_of(name)] == []
    defined = {name for name, value in vars(mg).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert defined == {name for name in PUBLIC if not inspect.ismodule(getattr(mg, name))}


@pytest.mark.parametrize("module", ["aggregators", "grains", "heads", "hubness", "losses", "metrics"])
def test_public_names_of_a_module(module: str) -> None:
    """Those of a module that the package gives too are listed once, under the shorter name."""
    names = set(getattr(mg, module).__all__)
    listed = {name.partition(".")[2] for name in LISTED if name.startswith(f"{module}.")}
    assert names == listed | {name for name in names & set(PUBLIC) if name not in listed}
    assert not listed & set(PUBLIC)


def undocumented(name: str, value: Any) -> Iterator[str]:
    """Yield the name if it has no docstring of its own, and each public member without one, inherited or not."""
    if not value.__doc__:
        yield name
    if not inspect.isclass(value):
        return
    ours = [base for base in value.__mro__ if base.__module__.startswith("multigrain")]
    for member, definition in vars(value).items():
        function = getattr(definition, "__func__", definition)
        if member.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
            continue
        if not any(getattr(vars(base).get(member), "__doc__", None) for base in ours):
            yield f"{name}.{member}"


def test_public_names_have_docstrings() -> None:
    values = {name: attrgetter(name)(mg) for name in LISTED}
    documented = {name: value for name, value in values.items() if callable(value) or inspect.ismodule(value)}
    assert [missing for name, value in documented.items() for missing in undocumented(name, value)] == []


IMPORT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import multigrain
seconds = time.process_time() - start
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "loaded": sorted(loaded)}))
"""


def import_in_a_fresh_interpreter() -> dict[str, Any]:
    """Import torch, then multigrain; return the seconds of the latter and the packages that it brought."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_import_is_light() -> None:
    measured = import_in_a_fresh_interpreter()
    assert HEAVY & set(measured["loaded"]) == set()
    # Time of the processor, the least of three: other work on the machine only ever adds to it.
    seconds = [measured["seconds"], *(import_in_a_fresh_interpreter()["seconds"] for _ in range(2))]
    assert min(seconds) < 0.1, f"import multigrain took {min(seconds):.3f} s beyond torch"


def test_the_core_needs_three_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} == CORE_PACKAGES
    assert project["version"] == mg.__version__
