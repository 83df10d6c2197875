"""Two processes with unequal batches minimise what one does with the whole, for every recipe that gathers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from multigrain import recipes
from tests.recipes.features import raw, small
from tests.strategies import close
from tests.worlds import World

OF_ONE_RANK = {"albef", "matching_head", "taco"}  # matching sees the batch of its rank alone
GATHERED = [name for name in recipes.names() if name not in OF_ONE_RANK]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(2, tmp_path_factory.mktemp("world")) as world:
        yield world


def loss_and_gradients(recipe: recipes.Recipe, rows: slice) -> dict[str, Tensor]:
    text, video = raw(5, dtype=torch.float64)
    loss = recipe.double()(text[rows], video[rows])
    if loss.requires_grad:
        loss.backward()
    found = {name: p.grad for name, p in recipe.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def on_rank(rank: int, size: int, names: list[str]) -> list[dict[str, Tensor]]:
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    return [loss_and_gradients(small(name), rows) for name in names]


def test_loss_and_gradients_are_those_of_the_whole_batch(pair: World) -> None:
    """ALIGN's acceptance test, of all that gather: the mean over ranks, as DistributedDataParallel leaves it."""
    for name, first, second in zip(GATHERED, *pair(on_rank, GATHERED), strict=True):
        expected = loss_and_gradients(small(name), slice(None))
        assert first.keys() == second.keys() == expected.keys(), name
        for part, value in expected.items():
            close((first[part] + second[part]) / 2, value, 1e-8)
