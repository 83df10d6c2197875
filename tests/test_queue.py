"""FeatureQueue and momentum_update: first in first out, the loss over batch and queue, the same on every rank."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import multigrain as mg
from tests.strategies import close
from tests.training_parts import Case, Model, assert_same, gradients, parts
from tests.worlds import World


def items(*values: int, length: int = 1, dim: int = 2, grain: str = "video") -> mg.Features:
    """One item for each value, all its numbers that value."""
    return mg.Features(**{grain: torch.tensor(values, dtype=torch.float64)[:, None, None].expand(-1, length, dim)})


def held(queue: mg.losses.FeatureQueue, grain: str = "video") -> list[float]:
    assert queue.features is not None
    return queue.features[grain].features[:, 0, 0].tolist()


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_the_oldest_leave_first() -> None:
    queue = mg.losses.FeatureQueue(6)
    assert len(queue) == 0 and queue.features is None
    for start, expected in ((0, [0, 1, 2, 3]), (4, [2, 3, 4, 5, 6, 7]), (8, [6, 7, 8, 9, 10, 11])):
        queue.push(items(*range(start, start + 4)), ids=torch.arange(start, start + 4))
        assert held(queue) == expected and queue.ids is not None and queue.ids.tolist() == expected
    queue.push(items(*range(20, 29)), ids=torch.arange(20, 29))  # more than it holds
    assert held(queue) == [23, 24, 25, 26, 27, 28]


def test_it_keeps_copies_without_a_graph() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    queue = mg.losses.FeatureQueue(4)
    queue.push(mg.Features(video=x))
    assert queue.features is not None and not queue.features["video"].features.requires_grad
    with torch.no_grad():
        x.zero_()
    assert (queue.features["video"].features == 1).all()


def test_lengths_may_differ_and_masks_come_along() -> None:
    queue = mg.losses.FeatureQueue(3)
    queue.push(items(1, 2, length=2))
    mask = torch.tensor([[True, False, True]])
    queue.push(mg.Features(video=(items(3, length=3)["video"].features, mask)))
    assert queue.features is not None and queue.features["video"].mask is not None
    assert queue.features["video"].mask.tolist() == [[True, True, False], [True, True, False], [True, False, True]]
    score = mg.MultiGrain(mg.Grain("video", "video", "mean_mean"))
    close(score(queue.features, queue.features), torch.ones(3, 3, dtype=torch.float64))


def test_its_state_round_trips(tmp_path: Path) -> None:
    queue, empty = mg.losses.FeatureQueue(6), mg.losses.FeatureQueue(6)
    empty.load_state_dict(empty.state_dict())
    assert len(empty) == 0
    mask = torch.tensor([[True, False], [True, True]])
    queue.push(mg.Features(word=mg.Tokens(unit(2, 2, 3), mask, unit=True), text=unit(2, 3)), ids=torch.tensor([5, 6]))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    other = mg.losses.FeatureQueue(6)
    other.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for each in (queue, other):
        each.push(
            mg.Features(word=mg.Tokens(unit(1, 1, 3).fill_(0.5), unit=True), text=torch.ones(1, 3)), torch.tensor([7])
        )
    assert queue.features is not None and other.features is not None
    assert other.ids is not None and other.ids.tolist() == [5, 6, 7]
    for name in ("word", "text"):
        mine, theirs = queue.features[name], other.features[name]
        assert torch.equal(mine.features, theirs.features) and mine.unit == theirs.unit
    with pytest.raises(ValueError, match="state: expected that of a queue of size 7, got 6"):
        mg.losses.FeatureQueue(7).load_state_dict(queue.state_dict())


@pytest.mark.parametrize(
    ("features", "ids", "message"),
    [
        (
            items(1, grain="frame"),
            torch.arange(1),
            "features: expected grains .*first push, {'video': 2}, got {'frame': 2}",
        ),
        (items(1, dim=3), torch.arange(1), "first push, {'video': 2}, got {'video': 3}"),
        (items(1), None, "ids: expected a push with ids, as the first, got one without"),
        (items(1), torch.arange(2), r"ids: expected shape \[1\], got \[2\]"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(features: mg.Features, ids: Any, message: str) -> None:
    queue = mg.losses.FeatureQueue(4)
    queue.push(items(1, 2), torch.arange(2))
    with pytest.raises(ValueError, match=message):
        queue.push(features, ids)
    assert held(queue) == [1, 2]


def loss_of(scorer: mg.MultiGrain | None = None, **settings: Any) -> mg.RetrievalLoss:
    return mg.RetrievalLoss(scorer or mg.MultiGrain(mg.VideoSentence()), mg.InfoNCE(**settings).double())


def test_an_empty_queue_changes_nothing() -> None:
    text, video = mg.Features(sentence=unit(4, 3)), mg.Features(video=unit(4, 3))
    loss, queue = loss_of(label_smoothing=0.1), mg.losses.FeatureQueue(5)
    close(loss(text, video, text_queue=queue, video_queue=queue), loss(text, video))
    ids = torch.tensor([0, 1, 0, 2])
    for given in (ids, (ids, ids)):
        close(loss(text, video, given, text_queue=queue), loss(text, video, ids))


def test_loss_is_cross_entropy_over_batch_and_queue() -> None:
    """BriVL: per direction CE(cat[q k+, q Queue] / 0.07, 0), summed; the other keys of the batch are negatives too."""
    s, v, s_keys, v_keys = (unit(3, 4) for _ in range(4))
    s_old, v_old = unit(5, 4), unit(2, 4)
    texts, videos = mg.losses.FeatureQueue(5), mg.losses.FeatureQueue(5)
    texts.push(mg.Features(sentence=s_old))
    videos.push(mg.Features(video=v_old))
    got = loss_of(reduction="sum")(
        mg.Features(sentence=s),
        mg.Features(video=v),
        keys=(mg.Features(sentence=s_keys), mg.Features(video=v_keys)),
        text_queue=texts,
        video_queue=videos,
    )
    diagonal = torch.arange(3)
    by_text = F.cross_entropy(torch.cat([s @ v_keys.T, s @ v_old.T], 1) / 0.07, diagonal)
    by_video = F.cross_entropy(torch.cat([v @ s_keys.T, v @ s_old.T], 1) / 0.07, diagonal)
    close(got, by_text + by_video, 1e-6)  # the logit scale begins as fp32


def test_a_memory_of_past_batches_adds_to_rows_and_columns() -> None:
    s, v, s_old, v_old = unit(3, 4), unit(3, 4), unit(2, 4), 5 * unit(4, 4)
    texts, videos = mg.losses.FeatureQueue(2), mg.losses.FeatureQueue(4)
    texts.push(mg.Features(sentence=s_old))
    videos.push(mg.Features(video=mg.Tokens(v_old, unit=True)))  # scores far above those of the batch
    sides = mg.Features(sentence=s), mg.Features(video=mg.Tokens(v, unit=True))
    got = loss_of(reduction="sum")(*sides, text_queue=texts, video_queue=videos)
    by_text = F.cross_entropy(s @ torch.cat([v, v_old]).T / 0.07, torch.arange(3))
    by_video = F.cross_entropy(v @ torch.cat([s, s_old]).T / 0.07, torch.arange(3))
    close(got, by_text + by_video, 1e-6)


def test_ids_make_positives_of_queued_items_and_share_their_mass() -> None:
    s, v, v_old = unit(3, 4), unit(3, 4), unit(2, 4)
    ids, old = torch.tensor([4, 5, 4]), torch.tensor([5, 9])
    queue = mg.losses.FeatureQueue(8)
    queue.push(mg.Features(video=v_old), old)
    criterion = mg.InfoNCE(1.0, label_smoothing=0.2).double()
    got = mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), criterion)(
        mg.Features(sentence=s), mg.Features(video=v), ids, video_queue=queue
    )
    targets = (ids[:, None] == torch.cat([ids, old])).double()
    targets /= targets.sum(1, keepdim=True)
    scale = criterion.logit_scale.exp()
    by_text = F.cross_entropy(scale * s @ torch.cat([v, v_old]).T, targets, label_smoothing=0.2)
    within = (ids[:, None] == ids).double()
    by_video = F.cross_entropy(scale * v @ s.T, within / within.sum(1, keepdim=True), label_smoothing=0.2)
    close(got, (by_text + by_video) / 2, 1e-6)


def test_no_gradient_reaches_keys_or_queue() -> None:
    leaves = [unit(3, 4).requires_grad_() for _ in range(4)]
    s, v, s_keys, v_keys = leaves
    queue = mg.losses.FeatureQueue(5)
    queue.push(mg.Features(video=unit(4, 4)))
    keys = mg.Features(sentence=s_keys), mg.Features(video=v_keys)
    loss_of()(mg.Features(sentence=s), mg.Features(video=v), keys=keys, video_queue=queue).backward()
    queue.push(keys[1])  # after or before the backward pass: it writes into nothing that a graph holds
    assert [leaf.grad is None for leaf in leaves] == [False, False, True, True]


def test_what_a_loss_cannot_use_is_named() -> None:
    text, video, queue = mg.Features(sentence=unit(2, 3)), mg.Features(video=unit(2, 3)), mg.losses.FeatureQueue(3)
    queue.push(mg.Features(video=unit(2, 3)), torch.arange(2))
    with pytest.raises(ValueError, match=r"ids: expected them for both .* for neither, got them for the queue alone"):
        loss_of()(text, video, video_queue=queue)
    with pytest.raises(ValueError, match="keys: expected 2 texts and 2 videos, got 2 and 1"):
        loss_of()(text, video, keys=(text, video[:1]))
    lonely = torch.arange(2), torch.arange(1, 3)
    with pytest.raises(ValueError, match="ids: expected a positive for every candidate, got none for candidate 1"):
        loss_of()(text, video, lonely, video_queue=queue)
    with pytest.raises(TypeError, match=r"criterion: for keys and queues, expected .*, got Plain"):
        mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), Plain())(text, video, video_queue=queue)


class Plain(nn.Module):
    """A loss of scores that is no mean over rows."""

    def forward(self, scores: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        return scores.mean()


def test_momentum_by_hand() -> None:
    online, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        online.weight.copy_(torch.tensor([3.0, 5.0]))
        target.weight.copy_(torch.tensor([1.0, 2.0]))
        online.running_mean.fill_(7.0)
    mg.losses.momentum_update(online, target.requires_grad_(False), 0.99)
    close(target.weight, torch.tensor([0.99 * 1 + 0.01 * 3, 0.99 * 2 + 0.01 * 5]), 1e-6)
    assert (target.running_mean == 7).all() and online.weight.tolist() == [3, 5]
    mg.losses.momentum_update(online, target, 0.0)
    assert torch.equal(target.weight, online.weight)
    with pytest.raises(ValueError, match="target: expected a copy of online, got other names: bias, "):
        mg.losses.momentum_update(nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False))
    with pytest.raises(ValueError, match=r"decay: expected a finite number from 0 to 1, got 1\.5"):
        mg.losses.momentum_update(online, target, 1.5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(2, tmp_path_factory.mktemp("world")) as world:
        yield world


def train(model: nn.Module, momentum: Model, chunk: Any, group: Any, labels: Any, steps: int = 3) -> list[Any]:
    """MoCo: keys of a momentum encoder, and queues of them; two wraps of a queue of five."""
    texts, videos = mg.losses.FeatureQueue(5, group), mg.losses.FeatureQueue(5, group)
    found: list[Any] = []
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    for step in range(steps):
        model.zero_grad()
        keys = [mg.Features.cat(side) for side in zip(*(momentum.towers(part) for part in chunk), strict=True)]
        ids = labels + 2 * step
        loss = model(chunk, ids, keys=tuple(keys), text_queue=texts, video_queue=videos)
        loss.backward()
        texts.push(keys[0], ids)
        videos.push(keys[1], ids)
        found.append((loss.detach(), gradients(model), videos.ids))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
        mg.losses.momentum_update(inner.towers, momentum.towers, 0.9)
    return found


def queued(rank: int, size: int, gather: str, minimised: str, distillation: float) -> list[int]:
    import torch.distributed as dist

    case = Case(ids="shared", learned=True, minimised=minimised, distillation=distillation)
    batch = parts(size, "unequal")
    model = Model(case, "none")
    # The reference is one process: a group of its own keeps its queues to itself.
    own_group = dist.new_group([rank], use_local_synchronization=True)
    expected = train(model, copy.deepcopy(model), batch, own_group, case.labels(batch))
    several = Model(case, gather)
    own = [batch[rank]]
    got = train(DistributedDataParallel(several), copy.deepcopy(several), own, None, case.labels(own))
    for (loss, grads, ids), (expected_loss, expected_grads, expected_ids) in zip(got, expected, strict=True):
        dist.all_reduce(loss)
        close(loss / size, expected_loss)
        assert_same(grads, expected_grads)
        assert torch.equal(ids, expected_ids)
    return got[-1][2].tolist()


@pytest.mark.parametrize("gather", ["auto", "global"])
@pytest.mark.parametrize(("minimised", "distillation"), [("InfoNCE", 0), ("InfoNCE", 0.4), ("sum of whole rows", 0)])
def test_every_rank_keeps_the_same_queue_and_the_gradient_is_whole(
    pair: World, gather: str, minimised: str, distillation: float
) -> None:
    first, second = pair(queued, gather, minimised, distillation)
    assert first == second and len(first) == 5


def odd_push(rank: int, size: int) -> str:
    queue = mg.losses.FeatureQueue(4)
    try:
        queue.push(items(1, 2), torch.arange(2 + rank))
    except ValueError as error:
        return str(error)
    return "no error"


def test_a_push_that_fails_on_one_rank_fails_on_all(pair: World) -> None:
    assert pair(odd_push) == ["rank 1: ids: expected shape [2], got [3]"] * 2
