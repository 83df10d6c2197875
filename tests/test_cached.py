"""CachedLoss against the plain loss of the whole batch: dropout, autocast, scaling, DDP; memory is the benchmark's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import multigrain as mg
from tests.training_parts import Case, Model, Part, assert_same, gradients, parts, shard
from tests.worlds import World


def plain(model: Model, chunks: Sequence[Part], ids: Any = None) -> Tensor:
    """The whole batch with its graph; the encoder still takes chunk by chunk, so that dropout draws alike."""
    return model(chunks, ids)


@pytest.mark.parametrize("ids", ["none", "shared", "pair"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_loss_gradients_and_random_state_are_those_of_the_plain_loss(ids: str, dropout: float) -> None:
    case, chunks = Case(ids=ids, learned=True), parts(3, "unequal")
    found = []
    for cached in (False, True):
        model = Model(case, "none", dropout)
        torch.manual_seed(3)
        if cached:
            loss = mg.CachedLoss(model.loss)(model.towers, chunks, case.labels(chunks))
        else:
            loss = plain(model, chunks, case.labels(chunks))
        drawn = torch.rand(1)  # between the passes
        (3 * loss).backward()
        found.append(gradients(model) | {"loss": loss.detach(), "between": drawn, "after": torch.rand(1)})
    assert_same(found[1], found[0])


def test_dropout_differs_from_chunk_to_chunk() -> None:
    part = parts(1, "equal")[0]
    seen: list[Tensor] = []

    def encode(chunk: Part) -> tuple[mg.Features, mg.Features]:
        text, video = model.towers(chunk)
        seen.append(text["word"].features.detach().nan_to_num())
        return text, video

    model = Model(Case(), "none", 0.5)
    mg.CachedLoss(model.loss)(encode, [part, part]).backward()
    assert len(seen) == 4 and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_autocast_of_the_first_pass_holds_in_the_second() -> None:
    found, chunks = (
        [],
        [part._replace(words=part.words.float(), frames=part.frames.float()) for part in parts(3, "equal")],
    )
    for cached in (False, True):
        model = Model(Case(), "none", 0.3).float()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = mg.CachedLoss(model.loss)(model.towers, chunks) if cached else plain(model, chunks)
        loss.backward()
        found.append(gradients(model) | {"loss": loss.detach()})
    assert_same(found[1], found[0], 1e-2)  # bf16 gradients of chunks are rounded before they are summed
    assert (found[1]["loss"] == found[0]["loss"]).all()


def test_gradients_accumulate_and_scale() -> None:
    """Two backward passes add up, under a scaled loss, as GradScaler makes it."""
    chunks, model = parts(2, "unequal"), Model(Case(), "none")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(2):
        scaler.scale(mg.CachedLoss(model.loss)(model.towers, chunks)).backward()
    scaler.unscale_(optimizer)
    once = Model(Case(), "none")
    plain(once, chunks).backward()
    assert_same(gradients(model), {name: 2 * grad for name, grad in gradients(once).items()})


def test_a_frozen_tower_and_features_without_a_graph() -> None:
    chunks, found = parts(2, "equal"), []
    for cached in (False, True):
        model = Model(Case(), "none")
        model.towers.video.requires_grad_(False)
        loss = mg.CachedLoss(model.loss)(model.towers, chunks) if cached else plain(model, chunks)
        loss.backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])
    ready = model.towers(chunks[0])
    with torch.no_grad():
        loss = mg.CachedLoss(model.loss)(lambda chunk: chunk, [ready])
    assert not loss.requires_grad
    given = [tuple(features.detach() for features in ready)]
    mg.CachedLoss(model.loss)(lambda chunk: chunk, given).backward()
    assert given[0][0]["word"].features.grad_fn is None  # what the encoder was given is as it was


def test_only_one_chunk_has_a_graph_at_a_time() -> None:
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return grad

    def encode(part: Part) -> tuple[mg.Features, mg.Features]:
        text, video = model.towers(part)
        if torch.is_grad_enabled():
            text = mg.Features(sentence=Counted.apply(text["sentence"].features), word=text["word"])
        return text, video

    model = Model(Case(), "none")
    mg.CachedLoss(model.loss)(encode, parts(3, "unequal")).backward()
    assert (alive, most) == (0, 1)


def test_what_is_wrong_is_named() -> None:
    model, chunks = Model(Case(), "none"), parts(2, "equal")
    with pytest.raises(ValueError, match="chunks: expected at least one, got none"):
        mg.CachedLoss(model.loss)(model.towers, [])
    passes = iter([*chunks, *parts(2, "unequal")])
    loss = mg.CachedLoss(model.loss)(lambda _: model.towers(next(passes)), chunks)
    with pytest.raises(ValueError, match="encode: expected features of the same shapes in both passes"):
        loss.backward()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(2, tmp_path_factory.mktemp("world")) as world:
        yield world


def cached_under_ddp(rank: int, size: int, gather: str) -> None:
    """Rank 0 has two chunks, rank 1 one; together they are the batch of one process."""
    case, batch = Case(learned=True, ids="shared"), parts(3, "unequal")
    reference = Model(case, "none")
    plain(reference, batch, case.labels(batch)).backward()
    own = [batch[:2], batch[2:]][rank]
    model = Model(case, gather)
    towers, loss = DistributedDataParallel(model.towers), DistributedDataParallel(model.loss)
    for _ in range(2):  # DDP is ready for the next step
        model.zero_grad()
        mg.CachedLoss(loss)(towers, own, case.labels(own)).backward()
        assert_same(gradients(model), gradients(reference))


@pytest.mark.parametrize("gather", ["auto", "global"])
def test_with_gather_under_ddp_and_different_numbers_of_chunks(pair: World, gather: str) -> None:
    pair(cached_under_ddp, gather)


def cached_under_fsdp2(rank: int, size: int) -> None:
    case, batch = Case(learned=True, ids="shared"), parts(2, "unequal")
    batch = [batch[0], batch[1], batch[1], batch[0]]
    reference = Model(case, "none")
    plain(reference, batch, case.labels(batch)).backward()
    own = [batch[:2], batch[2:]][rank]
    model = Model(case, "auto")
    towers, loss = shard(model.towers, size), DistributedDataParallel(model.loss)
    for _ in range(2):
        model.zero_grad()
        mg.CachedLoss(loss)(towers, own, case.labels(own)).backward()
        assert_same(gradients(model), gradients(reference))


def test_with_gather_under_fsdp2(pair: World) -> None:
    pair(cached_under_fsdp2)
