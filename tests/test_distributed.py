"""Two and three gloo processes against one: the loss of the whole batch and its gradient, or one error on all ranks."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import multigrain as mg
from benchmarks.harness.traffic import Traffic
from multigrain import distributed
from multigrain.aggregators import aggregator_names
from tests.training_parts import CRITERIA, LOSSES, Case, Model, assert_same, gradients, parts, shard
from tests.worlds import World, context


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    folder = tmp_path_factory.mktemp("worlds")
    with World(2, folder) as two, World(3, folder) as three:
        yield {2: two, 3: three}


@pytest.fixture(params=[2, 3], ids=["two", "three"])
def world(request: pytest.FixtureRequest, worlds: dict[int, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def pair(worlds: dict[int, World]) -> World:
    return worlds[2]


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
    unused = case.minimised in LOSSES  # which need not read every grain, or not all towers
    model = DistributedDataParallel(Model(case, case.gather), find_unused_parameters=unused)
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


def every_loss(rank: int, size: int, case: Case) -> None:
    """As under DDP; and the means of the terms over the ranks are those of the whole batch."""
    under_ddp(rank, size, case)
    batch, expected, model = parts(size, case.layout, case.masks), Model(case, "none"), Model(case, case.gather)
    expected(batch, case.labels(batch))
    model([batch[rank]], case.labels([batch[rank]]))
    found = {name: mean(value, size) for name, value in model.loss.terms.items()}
    torch.testing.assert_close(found, expected.loss.terms)
    assert len(found) == {"sum in parts": 3, "sum of losses": 3}.get(case.minimised, len(found))


@pytest.mark.parametrize("minimised", [*CRITERIA, *LOSSES])
def test_every_loss_and_its_terms(world: World, minimised: str) -> None:
    for ids in ("none", "pair"):
        world(every_loss, Case("mean_max", minimised=minimised, gather="auto", ids=ids))
    world(every_loss, Case("mean_max", minimised=minimised, gather="global"))


def with_reduce_scatter(rank: int, size: int) -> None:
    """The backward pass of NCCL, by gloo's own reduce-scatter."""
    backend = dist.get_backend
    torch.distributed.get_backend = lambda group=None: "nccl"
    try:
        features = mg.Features(x=torch.full((rank + 1, 2), 1.0, requires_grad=True))
        gathered = distributed.gather({"x": features}).features["x"]["x"].features
        ((rank + 1) * gathered * torch.arange(1.0, len(gathered) + 1)[:, None]).sum().backward()
    finally:
        torch.distributed.get_backend = backend
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
    with pytest.raises(TypeError, match=r'for gather="local", expected a Criterion .*, got Plain'):
        mg.RetrievalLoss(Case().scorer(), Plain(), "local")


def rounded_exchange(rank: int, size: int) -> None:
    """The gradient of a batch of rounded features, whole."""
    case = Case(exchange_dtype=torch.bfloat16)
    towers = Model(case, "none").towers
    features = [towers(part) for part in parts(size, case.layout)]

    def rounded(tokens: mg.Tokens) -> mg.Tokens:
        x = tokens.features
        return mg.Tokens(x + (x.bfloat16().double() - x).detach(), tokens.mask)

    text, video = (mg.Features.cat(side) for side in zip(*features, strict=True))
    video = mg.Features(**{name: rounded(video[name]) for name in video.names})  # texts stay where they are
    reference = Model(case, "none")
    reference.loss(text, video).backward()
    expected = gradients(towers)
    model = DistributedDataParallel(Model(case, "local"))
    model([parts(size, case.layout)[rank]], None).backward()
    assert_same({k.removeprefix("towers."): v for k, v in gradients(model).items() if "towers" in k}, expected)


def test_features_may_travel_in_half_precision(pair: World) -> None:
    pair(rounded_exchange)


def sharded(rank: int, size: int, case: Case) -> None:
    """Towers under FSDP2 or DDP, the loss and its few parameters under DDP; Features go from one to the other."""
    expected, expected_gradients = one_process(case, size)
    own = parts(size, case.layout)[rank]
    for wrap in (
        lambda towers: shard(towers, size),
        lambda towers: shard(towers, size, layers=False),
        lambda towers: DistributedDataParallel(towers, find_unused_parameters=True),
    ):
        model = Model(case, "auto")
        model.towers = wrap(model.towers)
        criterion = DistributedDataParallel(model.loss)
        loss = criterion(*model.towers(own), case.labels([own]))
        loss.backward()
        torch.testing.assert_close(mean(loss, size), expected)
        found = {name.replace(".module.", "."): grad for name, grad in gradients(model).items()}
        assert_same(found, expected_gradients)


def test_wrapped_towers_that_return_features(world: World) -> None:
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


def bytes_sent(rank: int, size: int, masked: bool, dtype: torch.dtype | None) -> None:
    mask = torch.ones(4, 5, dtype=torch.bool) if masked else None
    word = torch.randn(4, 5, 8, requires_grad=True)
    text = mg.Features(sentence=torch.randn(4, 8, requires_grad=True), word=(word, mask))
    video = mg.Features(video=torch.randn(4, 8))  # needs no gradient
    ids = (torch.arange(4),)
    with Traffic() as forward:
        gathered = distributed.gather({"text": text, "video": video}, ids, dtype=dtype)
    with Traffic() as backward:
        sum(gathered.features["text"][name].features.sum() for name in ("sentence", "word")).backward()
    expected = distributed.wire_bytes((text, video), size, ids=4, dtype=dtype, gloo=True)
    assert (forward.tensors, backward.tensors) == expected
    assert 0 < forward.objects < (size - 1) * 1500 and backward.objects == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_bytes_on_the_wire_are_those_of_the_formula(world: World, masked: bool, dtype: torch.dtype | None) -> None:
    world(bytes_sent, masked, dtype)


def test_the_formula_by_hand() -> None:
    text = mg.Features(word=(torch.zeros(2, 3, 5, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)))
    video = mg.Features(video=torch.zeros(2, 5, dtype=torch.float16, requires_grad=True))
    assert distributed.wire_bytes([text, video], 4, ids=2) == (3 * (120 + 6 + 20 + 16), 3 * (120 + 40))
    assert distributed.wire_bytes([text], 4, dtype=torch.bfloat16, gloo=True) == (3 * (60 + 6), 3 * 240)


def only_what_is_scored(rank: int, size: int) -> int:
    text = mg.Features(sentence=torch.randn(4, 8), word=torch.randn(4, 5, 8))
    loss = mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), mg.InfoNCE())
    with Traffic() as traffic:
        loss(text, mg.Features(video=torch.randn(4, 8), frame=torch.randn(4, 20, 8)))
    return traffic.tensors


def test_grains_that_the_scorer_ignores_stay_where_they_are(pair: World) -> None:
    assert pair(only_what_is_scored) == [4 * 8 * 4 + 4 * 6 * 4] * 2  # the videos, and the parts of four columns


def disagreement(rank: int, size: int, what: str) -> str:
    odd = rank == 1
    width, dtype = 7 if odd and what == "width" else 6, torch.float64 if odd and what == "dtype" else torch.float32
    grains = {"sentence": mg.Tokens(torch.randn(2, 6), unit=odd and what == "unit")}
    grains["word" if not (odd and what == "grains") else "phrase"] = mg.Tokens(torch.randn(2, 3, width, dtype=dtype))
    if what == "gradient" and odd:
        grains["word"].features.requires_grad_()
    video = mg.Features(video=torch.randn(3 if odd and what == "batch" else 2, 6))
    ids: Any = torch.arange(3) if odd and what == "length of ids" else torch.arange(2)
    if odd and what in ("ids", "pair"):
        ids = None if what == "ids" else (ids, ids)
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord())
    try:
        mg.RetrievalLoss(scorer, mg.InfoNCE())(mg.Features(**grains), video, ids)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("width", "grain 'word' of text: expected the same on all ranks, got width 6, .* on rank 0.*; width 7, .* 1"),
        ("dtype", "grain 'word' .* torch.float32 .* on rank 0.*; .*torch.float64 .* on rank 1"),
        ("grains", "grain 'word' of text: .* absent on rank 1"),
        ("unit", "grain 'sentence' of text: .*, unit on cpu .* on rank 1"),
        ("gradient", "grain 'word' of text: .* with no gradient on rank 0.* with a gradient on rank 1"),
        ("ids", "the number of sets of ids: expected the same on all ranks, got 1 on rank 0.*; 0 on rank 1"),
        ("pair", "the number of sets of ids: .* 2 on rank 1"),
        ("batch", "^rank 1: expected as many videos as texts .2; .*, got 3$"),
        ("length of ids", r"^rank 1: ids of the texts: expected shape \[2\], got \[3\]$"),
    ],
)
def test_ranks_that_disagree_raise_the_same_everywhere(world: World, what: str, message: str) -> None:
    messages = world(disagreement, what)
    assert len(set(messages)) == 1
    assert re.search(message, messages[0]), messages[0]
    world(under_ddp, Case())  # and can go on


def lonely(rank: int, size: int) -> str:
    features = mg.Features(sentence=torch.randn(2, 6)), mg.Features(video=torch.randn(2, 6))
    ids = torch.tensor([0, 1]), torch.tensor([0, 1 + rank])
    try:
        mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), mg.InfoNCE())(*features, ids)
    except ValueError as error:
        return str(error)
    return "no error"


def test_a_row_without_a_positive_raises_everywhere(pair: World) -> None:
    assert pair(lonely) == ["ids: expected a positive for every candidate, got none for candidate 3"] * 2


def without_a_group_of_several(rank: int, size: int) -> None:
    alone = dist.new_group([rank], use_local_synchronization=True)
    batch = parts(1, "equal")
    expected = Model(Case(), "none")(batch, None)
    for gather in ("auto", "local", "global"):
        model = Model(Case(), gather)
        model.loss.group = alone
        torch.testing.assert_close(model(batch, None), expected)


def test_a_group_of_one_is_no_group(pair: World) -> None:
    pair(without_a_group_of_several)
    assert distributed.world() == (0, 1)
    batch = parts(1, "equal")
    for gather in ("auto", "local", "global"):
        torch.testing.assert_close(Model(Case(), gather)(batch, None), Model(Case(), "none")(batch, None))


def last_step(rank: int, size: int, folder: Path, stuck: bool) -> None:
    """Rank 1 ends, or stops answering, between the header and the first features."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store, timeout = f"file://{folder}/store", timedelta(seconds=3 if stuck else 60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)

    def end(*_: Any, **__: Any) -> None:
        time.sleep(300) if stuck else os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        torch.distributed.all_gather = end
    with open(folder / f"{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 2)
        under_ddp(rank, size, Case())


@pytest.mark.parametrize("stuck", [False, True])
def test_ranks_end_with_a_message_when_one_is_lost(tmp_path: Path, stuck: bool) -> None:
    start = time.monotonic()
    processes = [context.Process(target=last_step, args=(rank, 3, tmp_path, stuck), daemon=True) for rank in range(3)]
    for process in processes:
        process.start()
    for rank in (0, 2):
        processes[rank].join(60)
        assert processes[rank].exitcode not in (None, 0)
        message = (tmp_path / f"{rank}.txt").read_text()
        assert f"RuntimeError: rank {rank} could not exchange features with the other 2 ranks" in message
    processes[1].kill()
    processes[1].join()
    assert time.monotonic() - start < 60
