"""A griffe extension: the pages of the API show the names of `index.md`, module by module, and no more.

A page names modules (`::: multigrain.aggregators`), so that a new public name needs no edit of a page: its line in
`index.md` is enough, and its place there is its place on the page. Modules outside the core keep their own `__all__`;
their pages say in which order. The page of a class leaves out members that its public base documents.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

NAME = re.compile(r"\[multigrain\.([\w.]+)\]")


class Public(griffe.Extension):
    """Extension that gives each module of the core the exports that `index.md` lists of it, in that order."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Read `Example:` in a docstring as `Examples:`, which griffe renders as code."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Set the exports of multigrain's modules when it is loaded."""
        if pkg.name != "multigrain":
            return
        order = NAME.findall(Path(__file__).with_name("index.md").read_text())
        public: dict[str, dict[str, str]] = defaultdict(dict)
        for name in order:
            target = pkg[name]
            public[target.canonical_path.split(".")[1]][name.rpartition(".")[2]] = target.canonical_path
        for module_name, targets in public.items():
            module = pkg.members[module_name]
            module.exports = list(targets)
            for name, path in targets.items():
                if name not in module.members:
                    module.set_member(name, griffe.Alias(name, path))
        modules = [member for member in pkg.members.values() if isinstance(member, griffe.Module)]
        shown = {m.members[str(name)].canonical_path for m in modules for name in m.exports or ()}
        classes = list(_classes(pkg))
        for cls in classes:
            _leave_out(cls, shown)
        for cls in classes:
            cls.bases = _bases(cls, pkg, shown)


def _classes(module: griffe.Module) -> Iterator[griffe.Class]:
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield from _classes(member)
        elif isinstance(member, griffe.Class):
            yield member


def _leave_out(cls: griffe.Class, shown: set[str]) -> None:
    """No repr, and no method that a base on the pages has with the same parameters."""
    bases = [base for base in cls.mro() if base.path in shown]
    for name, method in list(cls.members.items()):
        told = any(_parameters(method) == _parameters(base.members.get(name)) for base in bases)
        if name in ("extra_repr", "__repr__") or (told and _parameters(method) is not None):
            del cls.members[name]


def _parameters(member: object) -> list[str] | None:
    """Those of a method or a property; None of anything else."""
    if isinstance(member, griffe.Function):
        return [parameter.name for parameter in member.parameters]
    return ["self"] if isinstance(member, griffe.Attribute) and "property" in member.labels else None


def _bases(cls: griffe.Class, pkg: griffe.Module, shown: set[str]) -> list[griffe.Expr | str]:
    """The bases that a reader can look up: in place of a private one those that it has, and neither ABC nor object."""
    found: dict[str, griffe.Expr | str] = {}
    for base in cls.bases:
        path = base if isinstance(base, str) else base.canonical_path
        if path.startswith("multigrain.") and path not in shown:
            private = pkg[path.removeprefix("multigrain.")]
            found |= {str(inner): inner for inner in _bases(private, pkg, shown)}
        elif path != "abc.ABC":
            found[str(base)] = base
    return list(found.values())
