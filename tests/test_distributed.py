"""Two and three gloo processes against one: the loss of the whole batch and its gradient, or one error on all ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import multigrain as mg
from multigrain import distributed
from multigrain.aggregators import aggregator_names
from tests.training_parts import Case, Model, Towers, assert_same, gradients, parts
from tests.worlds import World

# Other processes than pytest's own turn no warning into an error.


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(request.param, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(2, tmp_path_factory.mktemp("pair")) as world:
        yield world


def one_process(case: Case, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients where one process has the whole batch."""
    model, batch = Model(case, "none"), parts(size, case.layout, case.masks)
    loss = model(batch, case.labels(batch))
    loss.backward()
    return loss.detach(), gradients(model)


def mean(x: Tensor, size: int) -> Tensor:
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / size


def under_ddp(rank: int, size: int, case: Case) -> None:
    expected, expected_gradients = one_process(case, size)
    own = [parts(size, case.layout, case.masks)[rank]]
    model = DistributedDataParallel(Model(case, case.gather))
    loss = model(own, case.labels(own))
    loss.backward()
    torch.testing.assert_close(mean(loss, size), expected)
    if case.gather == "global":
        torch.testing.assert_close(loss.detach(), expected)
    assert_same(gradients(model), expected_gradients)


@pytest.mark.parametrize("name", sorted(aggregator_names()))
def test_every_aggregator(world: World, name: str) -> None:
    world(under_ddp, Case(name))


@pytest.mark.parametrize("gather", ["auto", "local", "global"])
@pytest.mark.parametrize("ids", ["none", "shared", "pair"])
@pytest.mark.parametrize(("layout", "masks"), [("equal", False), ("unequal", False), ("unequal", True)])
def test_batches_lengths_masks_and_ids(world: World, gather: str, ids: str, layout: str, masks: bool) -> None:
    world(under_ddp, Case(gather=gather, ids=ids, layout=layout, masks=masks))


@pytest.mark.parametrize("gather", ["local", "global"])
def test_scorers_that_learn(world: World, gather: str) -> None:
    world(under_ddp, Case(gather=gather, ids="shared", learned=True))


@pytest.mark.parametrize(
    "criterion", [{"label_smoothing": 0.1, "reduction": "sum"}, {"learn_logit_scale": False}, {"max_logit_scale": 1.0}]
)
def test_settings_of_the_criterion(pair: World, criterion: dict[str, Any]) -> None:
    for ids in ("none", "pair"):
        pair(under_ddp, Case(criterion=criterion, ids=ids))


def with_reduce_scatter(rank: int, size: int) -> None:
    """The backward pass of NCCL, by gloo's own reduce-scatter."""
    backend = dist.get_backend
    distributed.dist.get_backend = lambda group=None: "nccl"
    try:
        features = mg.Features(x=torch.full((rank + 1, 2), 1.0, requires_grad=True))
        gathered = distributed.gather({"x": features}).features["x"]["x"].features
        ((rank + 1) * gathered * torch.arange(1.0, len(gathered) + 1)[:, None]).sum().backward()
    finally:
        distributed.dist.get_backend = backend
    start, ranks = rank * (rank + 1) // 2, size * (size + 1) // 2
    expected = ranks * torch.arange(start + 1.0, start + rank + 2)[:, None].expand(-1, 2)
    torch.testing.assert_close(features["x"].features.grad, expected)


def test_the_backward_pass_of_other_backends(world: World) -> None:
    world(with_reduce_scatter)


class Plain(nn.Module):
    """A criterion without a form by direction."""

    def forward(self, scores: Tensor, ids: Any = None) -> Tensor:
        return nn.functional.cross_entropy(5 * scores, torch.arange(len(scores)))


def with_a_plain_criterion(rank: int, size: int) -> None:
    batch = parts(size, "unequal")
    found = {}
    for gather in ("none", "auto", "global"):
        model = Model(Case(), gather)
        model.loss.criterion = Plain()
        loss = model(batch if gather == "none" else [batch[rank]], None)
        loss.backward()
        for parameter in model.parameters():
            if gather != "none" and parameter.grad is not None:
                parameter.grad = mean(parameter.grad, size)
        found[gather] = gradients(model) | {"loss": loss.detach()}
    assert_same(found["auto"], found["none"])
    assert_same(found["global"], found["none"])


def test_a_criterion_without_directions_gets_the_whole_matrix(pair: World) -> None:
    pair(with_a_plain_criterion)


def test_local_needs_directions() -> None:
    with pytest.raises(TypeError, match=r'gather="local" needs .* one_way.* which Plain lacks'):
        mg.RetrievalLoss(Case().scorer(), Plain(), "local")


def rounded_exchange(rank: int, size: int) -> None:
    """The gradient of a batch of rounded features, whole."""
    case = Case(exchange_dtype=torch.bfloat16)
    towers = Model(case, "none").towers
    features = [towers(part) for part in parts(size, case.layout)]

    def rounded(tokens: mg.Tokens) -> mg.Tokens:
        x = tokens.features
        return mg.Tokens(x + (x.bfloat16().double() - x).detach(), tokens.mask)

    sides = [mg.Features.cat(side) for side in zip(*features, strict=True)]
    sides = [mg.Features(**{name: rounded(side[name]) for name in side.names}) for side in sides]
    reference = Model(case, "none")
    reference.loss(*sides).backward()
    expected = gradients(towers)
    model = DistributedDataParallel(Model(case, "local"))
    model([parts(size, case.layout)[rank]], None).backward()
    assert_same({k.removeprefix("towers."): v for k, v in gradients(model).items() if "towers" in k}, expected)


def test_features_may_travel_in_half_precision(pair: World) -> None:
    pair(rounded_exchange)


def sharded(rank: int, size: int, case: Case) -> None:
    """Towers under FSDP2, the loss and its few parameters under DDP."""
    expected, expected_gradients = one_process(case, size)
    model, own = Model(case, "auto"), parts(size, case.layout)[rank]
    for layer in (model.towers.text, model.towers.sentence):
        fully_shard(layer, mesh=dist.init_device_mesh("cpu", (size,)))
    towers = fully_shard(model.towers, mesh=dist.init_device_mesh("cpu", (size,)))
    criterion = DistributedDataParallel(model.loss)
    loss = criterion(*towers(own), case.labels([own]))
    loss.backward()
    torch.testing.assert_close(mean(loss, size), expected)
    found = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in gradients(model).items()}
    assert_same(found, expected_gradients)


def test_under_fsdp2(world: World) -> None:
    world(sharded, Case(learned=True, ids="shared"))


def accelerated(rank: int, size: int, case: Case) -> None:
    from accelerate import Accelerator

    _, expected = one_process(case, size)
    accelerator = Accelerator(cpu=True)
    model, own = Model(case, "auto"), [parts(size, case.layout)[rank]]
    wrapped, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    assert isinstance(wrapped, DistributedDataParallel)
    accelerator.backward(wrapped(own, case.labels(own)))
    assert_same(gradients(wrapped), expected)


def test_under_accelerate(pair: World) -> None:
    pytest.importorskip("accelerate")
    pair(accelerated, Case(learned=True, ids="shared"))


def in_fabric(rank: int, size: int, case: Case) -> None:
    from lightning_fabric import Fabric

    _, expected = one_process(case, size)
    fabric = Fabric(accelerator="cpu", devices=size, strategy="ddp", precision="64-true")
    fabric.launch()
    model, own = Model(case, "auto"), [parts(size, case.layout)[rank]]
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters()))
    fabric.backward(wrapped(own, case.labels(own)))
    assert_same({name.removeprefix("_forward_module.module."): g for name, g in gradients(model).items()}, expected)


def test_under_lightning_fabric(pair: World) -> None:
    pytest.importorskip("lightning_fabric")
    pair(in_fabric, Case(learned=True, ids="shared"))
