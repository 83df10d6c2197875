"""What is released: the files and metadata of wheel and sdist, and the wheel at work with its requirements alone."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
from email.message import Message
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement

import multigrain as mg

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "tests/support/smoke.py"
NAME = f"multigrain-{mg.__version__}"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("multigrain/**/*.py")]


def build(source: Path, target: Path) -> Path:
    """The folder of the wheel and the sdist of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(dist: Path) -> dict[str, bytes]:
    """Name -> contents."""
    with ZipFile(dist / f"{NAME}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def about(wheel: dict[str, bytes]) -> Message:
    return email.message_from_bytes(wheel[f"{NAME}.dist-info/METADATA"])


def test_the_wheel_is_the_package(wheel: dict[str, bytes]) -> None:
    package = [path for path in (ROOT / "multigrain").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    named = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    named.add(f"{NAME}.dist-info/licenses/LICENSE")
    assert set(wheel) == {path.relative_to(ROOT).as_posix() for path in package} | named
    for path in package:
        assert wheel[path.relative_to(ROOT).as_posix()] == path.read_bytes()
    # What is not a module is there because something reads it.
    assert {path.suffix for path in package} == {".py", ".typed", ".yaml", ".html", ".css", ".js"}
    assert wheel[f"{NAME}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_builds_the_same_wheel(dist: Path, wheel: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    beside = {path.name for path in (tmp_path / NAME).iterdir()}
    texts = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md"}
    assert beside == {"multigrain", "pyproject.toml", ".gitignore"} | texts
    with ZipFile(build(tmp_path / NAME, tmp_path / "again") / f"{NAME}-py3-none-any.whl") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == wheel


def test_metadata(about: Message, wheel: dict[str, bytes]) -> None:
    assert (about["Name"], about["Version"]) == ("multigrain", mg.__version__)
    assert (about["License-Expression"], about["License-File"]) == ("MIT", "LICENSE")
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload() == (ROOT / "README.md").read_text()
    assert wheel[f"{NAME}.dist-info/entry_points.txt"] == b"[console_scripts]\nmultigrain = multigrain.cli:main\n"


def test_extras_are_those_that_are_named(about: Message) -> None:
    """Whatever a page or an error tells to install is there, and what is there is on the page about installing."""
    extras = set(about.get_all("Provides-Extra", []))
    for path in TEXTS:
        named = re.findall(r"(?:multigrain|\.)\[([\w,-]+)\]", path.read_text())
        assert {extra for several in named for extra in several.split(",")} <= extras, path
    table = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(extras)


def test_what_says_the_version_agrees() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mg.__version__
    [newest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == mg.__version__


def test_partners_are_named_in_the_version_that_is_tested() -> None:
    page = (ROOT / "docs/guides/migrate.md").read_text()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for partner in ("open_clip_torch", "sentence-transformers", "pytorch-metric-learning", "transformers"):
        assert f"| {partner} {pins[partner]}" in page


def test_continuous_integration_runs_what_a_contributor_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "make test" in (ROOT / ".ci/run").read_text() and os.access(ROOT / ".ci/run", os.X_OK)


def test_links_beside_the_site_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == [], page


FORMS = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms(form: Path) -> None:
    """What GitHub asks of a form; one that lacks it is not shown, without a word."""
    value = yaml.safe_load(form.read_text())
    assert value.keys() == {"name", "description", "labels", "body"}
    assert {field["type"] for field in value["body"]} <= {"input", "textarea", "checkboxes", "dropdown"}
    assert all(field["attributes"]["label"] for field in value["body"])
    assert len({field["id"] for field in value["body"]}) == len(value["body"])


def requirements(names: list[str]) -> set[str]:
    """These distributions and what they need on this machine, without extras."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def installed(dist: Path, about: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As site-packages after `pip install` of the wheel into an empty environment."""
    site = tmp_path_factory.mktemp("site-packages")
    with ZipFile(dist / f"{NAME}-py3-none-any.whl") as archive:
        archive.extractall(site)
    needed = [Requirement(line) for line in about.get_all("Requires-Dist", [])]
    for name in requirements([requirement.name for requirement in needed if requirement.marker is None]):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return site


def test_the_wheel_needs_nothing_else(installed: Path, tmp_path: Path) -> None:
    """No module of another package can be imported: -S leaves out this environment's own."""
    # -W: without NumPy, torch itself warns when it is imported.
    command = [sys.executable, "-S", "-P", "-W", "ignore::UserWarning", SMOKE, ROOT / "README.md"]
    environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    seconds = []
    for _ in range(2):  # the first one compiles the modules
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.1, f"import multigrain took {min(seconds):.3f} s beyond torch"
