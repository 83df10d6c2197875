"""The rivals: their formulas in our words, and their packages where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

Scores = Callable[[], Tensor]


def gemm(words: Tensor, frames: Tensor) -> Tensor:
    """The product alone: cosines [texts x words, videos x frames]."""
    return torch.matmul(words.flatten(0, 1), frames.flatten(0, 1).T)


def original_aosm(words: Tensor, frames: Tensor, temperature: float = 0.01) -> Tensor:
    """X-CLIP's frame-word score of unit tokens [t, w, D] and [v, n, D], as its code computes it.

    Every similarity at once, a softmax over one axis times itself, then over the other, in both orders. The
    original also multiplies by mixing matrices and masks nothing; the matrices are left out here, in its favour.
    """
    sim = gemm(words, frames).view(*words.shape[:2], *frames.shape[:2])  # [t, w, v, n]

    def attend(x: Tensor, dim: int) -> Tensor:
        return (torch.softmax(x / temperature, dim=dim) * x).sum(dim)

    per_frame, per_word = attend(sim, 1), attend(sim, 3)  # [t, v, n], [t, w, v]
    return (attend(per_frame, 2) + attend(per_word, 1)) / 2


def normalized_original_aosm(words: Tensor, frames: Tensor) -> Tensor:
    """X-CLIP's frame-word score of raw tokens."""
    return original_aosm(F.normalize(words, dim=-1), F.normalize(frames, dim=-1))


def pylate_maxsim(query: Tensor, documents: Tensor) -> Tensor:
    """PyLate's colbert_scores without masks: MaxSim [q, c] of [q, m, D] and [c, n, D]."""
    return torch.einsum("qmd,cnd->qcmn", query, documents).max(-1).values.sum(-1)


def colpali_maxsim(query: Tensor, documents: Tensor) -> Tensor:
    """colpali-engine's in-batch MaxSim."""
    return torch.einsum("qmd,cnd->qcmn", query, documents).amax(3).sum(2)


def package(module: str) -> ModuleType | str:
    """A module, or the reason why it is not to be had."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        return "not installed" if missing else f"does not import: {error}"


def maxsim_rivals(query: Tensor, documents: Tensor, mean: bool) -> dict[str, Scores | str]:
    """Score a query [1, m, D] against documents [c, n, D] as others do, or say why they cannot; `mean` divides by m.

    Whatever a package wants to be given otherwise is prepared here, outside the timer.
    """
    rivals: dict[str, Scores | str] = {
        "PyLate's formula": lambda: pylate_maxsim(query, documents),
        "colpali-engine's formula": lambda: colpali_maxsim(query, documents),
    }
    for name, (module, build) in PACKAGES.items():
        found = package(module)
        rivals[name] = found if isinstance(found, str) else build(found, query, documents)
    if not mean:
        return rivals
    return {n: s if isinstance(s, str) else lambda s=s: s() / query.shape[1] for n, s in rivals.items()}


def _maxsim_cpu(module: ModuleType, query: Tensor, documents: Tensor) -> Scores | str:
    if query.is_cuda:
        return "runs on a CPU only"
    q, c = query[0].contiguous().numpy(), documents.contiguous().numpy()
    return lambda: torch.from_numpy(module.maxsim_scores(q, c))[None]


PACKAGES: dict[str, tuple[str, Callable[[ModuleType, Tensor, Tensor], Scores | str]]] = {
    "maxsim-cpu": ("maxsim_cpu", _maxsim_cpu),
    "sentence-transformers": ("sentence_transformers.util", lambda m, q, d: lambda: m.maxsim(q, d)),
    "colpali-engine": ("colpali_engine.utils.maxsim", lambda m, q, d: lambda: m.maxsim_inbatch(q, d)),
    "PyLate": ("pylate.scores", lambda m, q, d: lambda: m.colbert_scores(q, d)),
}
