"""A griffe extension: the pages of the API show what `multigrain.__all__` lists, module by module, and no more.

A page names modules (`::: multigrain.aggregators`), so that a new public name needs no edit of a page: its line in
`index.md` is enough. Modules with an `__all__` of their own that are no part of the core keep it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import griffe


class Public(griffe.Extension):
    """Gives each module of the core the exports that the package re-exports from it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once for each object: `Example:` reads as `Examples:`, which griffe renders as code."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called once for each function and method: how repr looks is of no interest."""
        if func.name == "extra_repr":
            func.public = False

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called once for each package that is loaded."""
        if pkg.name != "multigrain":
            return
        public: dict[str, dict[str, str]] = defaultdict(dict)
        for name in pkg.exports or ():
            target = pkg.members[str(name)]
            if isinstance(target, griffe.Alias) and not target.is_module:
                public[target.target_path.split(".")[1]][str(name)] = target.target_path
        for module_name, targets in public.items():
            module = pkg.members[module_name]
            module.exports = list(targets)
            for name, path in targets.items():
                if name not in module.members:
                    module.set_member(name, griffe.Alias(name, path))
