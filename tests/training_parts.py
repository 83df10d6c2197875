"""Small towers with a loss, and a batch cut over ranks: what the tests of big batches train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import multigrain as mg
from tests.strategies import randomise

WIDTH = 6
LENGTHS = {"equal": ((5, 4), (5, 4), (5, 4)), "unequal": ((4, 2), (7, 3), (2, 5))}  # words, frames of each rank
SIZES = {"equal": (3, 3, 3), "unequal": (1, 4, 2)}


class Part(NamedTuple):
    """The inputs of one rank: texts [B, M, 3] and videos [B, N, 3] with masks or None, and ids [B]."""

    words: Tensor
    word_mask: Tensor | None
    frames: Tensor
    frame_mask: Tensor | None
    ids: Tensor


def parts(size: int, layout: str, masks: bool = True) -> list[Part]:
    """The inputs of all ranks. With masks, rank 1 has none on its words."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for rank in range(size):
        items, (words, frames) = SIZES[layout][rank], LENGTHS[layout][rank]
        x, y = (torch.randn(items, n, 3, generator=generator, dtype=torch.float64) for n in (words, frames))
        m, n = (torch.rand(items, n, generator=generator) < 0.7 for n in (words, frames))
        m[:, 0] = n[:, -1] = True
        if rank == 1:
            m = None
        ids = torch.randint(3, (items,), generator=generator)
        made.append(Part(x, m if masks else None, y, n if masks else None, ids))
    return made


@dataclass(frozen=True)
class Case:
    """A scorer, a criterion, and how the batch is cut."""

    aggregator: str = "aosm"
    layout: str = "unequal"
    masks: bool = True
    ids: str = "none"  # or "shared", "pair"
    gather: str = "local"
    learned: bool = False
    criterion: dict[str, Any] = field(default_factory=dict)
    exchange_dtype: torch.dtype | None = None
    minimised: str = "InfoNCE"  # a name of CRITERIA or LOSSES
    distillation: float = 0.0

    def scorer(self) -> mg.MultiGrain:
        if not self.learned:
            return mg.MultiGrain(mg.VideoSentence(), mg.FrameWord(self.aggregator), mg.SentenceFrame(self.aggregator))
        mixing = mg.AOSM(temperature=0.1, query_tokens=8, candidate_tokens=6)
        grains = mg.VideoSentence(bilinear=WIDTH), mg.VideoWord(), mg.FrameWord(mixing, bilinear=WIDTH)
        return mg.MultiGrain(*grains, weights="learned")

    def loss(self, gather: str) -> mg.losses.Loss:
        if self.minimised in LOSSES:
            return LOSSES[self.minimised](gather)
        criterion, settings = CRITERIA[self.minimised](self), (gather, None, self.exchange_dtype, self.distillation)
        return mg.RetrievalLoss(self.scorer(), criterion, *settings)

    def labels(self, parts: Sequence[Part]) -> Any:
        ids = torch.cat([part.ids for part in parts])
        return {"none": None, "shared": ids, "pair": (ids, ids)}[self.ids]


CRITERIA: dict[str, Callable[[Case], mg.losses.Loss]] = {
    "InfoNCE": lambda case: mg.InfoNCE(1.0, **case.criterion),
    "Sigmoid": lambda _: mg.Sigmoid(1.0, -0.5),
    "MarginRanking": lambda _: mg.losses.MarginRanking(0.3, hard_pool=2, hard_weight=3.0),
    "query only": lambda _: mg.InfoNCE(1.0, direction="query") + mg.losses.MarginRanking(direction="query"),
    "candidate only": lambda _: mg.losses.MarginRanking(0.3, form="lse", over="sum", direction="candidate"),
    "sum in parts": lambda _: (mg.InfoNCE(1.0, direction="query") + 0.5 * mg.Sigmoid()).named("pairs") + mg.InfoNCE(),
    "sum of whole rows": lambda _: mg.InfoNCE(1.0) + 0.5 * mg.losses.MarginRanking(0.3),
}
LOSSES: dict[str, Callable[[str], mg.losses.Loss]] = {
    "TokenNCE": lambda gather: mg.losses.TokenNCE(weights=None, gather=gather),
    "Decorrelation": lambda gather: mg.losses.Decorrelation(gather=gather),
    "Distillation": lambda gather: mg.losses.Distillation(
        mg.VideoSentence(), mg.FrameWord("mean_max"), scale=5.0, gather=gather
    ),
    "sum of losses": lambda gather: (
        mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), mg.InfoNCE(1.0) + mg.losses.MarginRanking(), gather)
        + 0.5 * mg.losses.TokenNCE(weights=None, gather=gather)
    ),
}


def poisoned(x: Tensor, mask: Tensor | None) -> mg.Tokens:
    """Tokens with NaN behind their mask."""
    return mg.Tokens(x if mask is None else torch.where(mask[..., None], x, torch.nan), mask)


class Towers(nn.Module):
    """Words and frames through a layer each, with dropout; the first word is the sentence, the last frame the video."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(3, WIDTH), nn.Linear(3, WIDTH)
        self.sentence, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, part: Part) -> tuple[mg.Features, mg.Features]:
        words, frames = self.drop(self.text(part.words)).tanh(), self.drop(self.video(part.frames)).tanh()
        text = mg.Features(sentence=self.sentence(words[:, 0]), word=poisoned(words, part.word_mask))
        return text, mg.Features(video=frames[:, -1], frame=poisoned(frames, part.frame_mask))


class Model(nn.Module):
    """Towers and the loss in one, as one wraps them."""

    def __init__(self, case: Case, gather: str, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers, self.loss = Towers(dropout), case.loss(gather)
        randomise(self.double(), spread=0.5)

    def forward(self, parts: Sequence[Part], ids: Any, **settings: Any) -> Tensor:
        sides = zip(*(self.towers(part) for part in parts), strict=True)
        text, video = (mg.Features.cat(side) for side in sides)
        return self.loss(text, video, ids, **settings)


def shard(towers: Towers, size: int, layers: bool = True) -> nn.Module:
    """The whole under FSDP2, which returns Features, and before it each layer or none."""
    mesh = dist.init_device_mesh("cpu", (size,))
    for layer in (towers.text, towers.video, towers.sentence) if layers else ():
        fully_shard(layer, mesh=mesh)
    return fully_shard(towers, mesh=mesh)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Those of all parameters, whole, by name without the prefixes of wrappers."""
    named = ((name.removeprefix("module."), parameter.grad) for name, parameter in module.named_parameters())
    found = {name: grad for name, grad in named if grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """All names, and values relative to the largest of each."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
