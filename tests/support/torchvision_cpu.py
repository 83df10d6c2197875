"""Let the registry's torchvision be imported beside a CPU build of torch, in the development environment only.

PyPI's torchvision for Linux is linked against CUDA.  With a CPU torch its compiled extension does not load, and
`import torchvision` (hence timm's) ends in `operator torchvision::nms does not exist`, because the package
describes operators that nobody declared.  Declaring the two operators, without an implementation, is enough for
everything that does not call them.

`make` copies this module and its `.pth` file into the site-packages of `.venv`, so that it runs at every
interpreter start: it must stay cheap and must not import torch.  It is no part of the package `multigrain`.
"""

from __future__ import annotations

import sys

_SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []  # torch.library drops a library's operators when the object is collected


def declare_operators(folder):
    """Declare torchvision::nms and qnms, unless torch has CUDA or the extension in `folder` loads."""
    import pathlib

    import torch

    if torch.version.cuda is not None:
        return
    try:
        for extension in pathlib.Path(folder).glob("_C*.so"):
            torch.ops.load_library(extension)
            return  # a CPU build of torchvision: it declares its operators itself
    except OSError:
        pass  # linked against a CUDA that is not there: the case this module is for
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(_SCHEMA.format(operator))
    _declared.append(library)


class TorchvisionFinder:
    """Answers for `torchvision` alone, and declares the operators just before it runs."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Find torchvision as usual; wrap its loader, so that merely looking for it imports nothing."""
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations:
            execute = spec.loader.exec_module

            def exec_module(module):
                declare_operators(spec.submodule_search_locations[0])
                execute(module)

            spec.loader.exec_module = exec_module
        return spec


if TorchvisionFinder not in sys.meta_path:
    sys.meta_path.insert(0, TorchvisionFinder)
