"""score_matrix and top_k: blocks of any size give what one pass gives, and no more is ever held."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import multigrain as mg
from tests.strategies import CASES, Pair, close, pairs

blocks = st.integers(1, 6)


class Watched(nn.Module):
    """Four grains, and a record of the block sizes they were called with."""

    def __init__(self, aggregator: mg.Aggregator | str = "aosm") -> None:
        super().__init__()
        self.scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord(aggregator))
        self.seen: list[tuple[int, int]] = []

    def forward(self, text: mg.Features, video: mg.Features) -> Tensor:
        self.seen.append((len(text), len(video)))
        return self.scorer(text, video)


@pytest.mark.parametrize("case", CASES, ids=str)
@given(pairs(items=6), blocks)
def test_property_blocks_of_any_size_give_the_whole_matrix(case, device, pair, block):
    pair, scorer = pair.to(device), Watched(case.build())
    matrix = mg.score_matrix(scorer, *pair, block=block)
    assert max(max(size) for size in scorer.seen) <= block
    close(matrix, scorer(*pair), 1e-12)


@given(pairs(items=6), blocks, st.data())
def test_property_top_k_is_the_matrix_s_own(device, pair, block, data):
    """Equal scores come in the order of their indices, so that the block size decides nothing."""
    pair, scorer = pair.to(device), Watched()
    if data.draw(st.booleans()):  # every candidate twice: ties in every row
        pair = Pair(pair.text, mg.Features.cat([pair.video, pair.video]), pair.dim)
    k = data.draw(st.integers(1, len(pair.video)))
    scores, indices = mg.top_k(scorer, *pair, k, block=block)
    assert max(max(size) for size in scorer.seen) <= block
    matrix = mg.score_matrix(scorer, *pair, block=1)  # one pair at a time: duplicates score bit for bit alike
    close(scores, matrix.topk(k).values, 1e-12)
    close(scores, matrix.gather(1, indices), 1e-12)
    assert all(len(set(row)) == k for row in indices.tolist())
    scores, indices = mg.top_k(scorer, *pair, k, block=1)
    assert torch.equal(indices, matrix.sort(dim=1, descending=True, stable=True).indices[:, :k])


@given(pairs(items=6), blocks, blocks, st.data())
def test_property_top_k_of_parts_is_that_of_the_whole(device, pair, block, size, data):
    """Parts come in order, one is held at a time, and indices and progress count through all of them."""
    pair, alive, calls = pair.to(device), weakref.WeakSet[mg.Tokens](), list[tuple[int, int]]()
    k = data.draw(st.integers(1, len(pair.video)))

    class Weak(mg.Tokens):
        __slots__ = ("__weakref__",)

    def parts() -> Iterator[mg.Features]:
        for i in range(0, len(pair.video), size):
            assert not alive
            part = pair.video[i : i + size]
            part = mg.Features(**{name: Weak(part[name].features, part[name].mask) for name in part.names})
            alive.update(part[name] for name in part.names)
            yield part
            del part

    scores, indices = mg.top_k(Watched(), pair.text, parts(), k, 1, progress=lambda *x: calls.append(x))
    expected = mg.top_k(Watched(), *pair, k, block=1)
    assert torch.equal(scores, expected[0])
    assert torch.equal(indices, expected[1])
    assert [done for done, _ in calls] == list(range(1, len(pair.text) * len(pair.video) + 1))
    assert all(done <= total for done, total in calls)
    assert calls[-1][0] == calls[-1][1]
    close(mg.top_k(Watched(), pair.text, parts(), k, block)[0], scores, 1e-12)


def test_parts_have_to_be_features_enough_for_k():
    scorer = Given(torch.randn(2, 5))
    for parts, message in (([], "candidate: expected at least one"), ([places(2), places(3)], "from 1 to 5, got 6")):
        with pytest.raises(ValueError, match=message):
            mg.top_k(scorer, places(2), iter(parts), 6)
    with pytest.raises(TypeError, match="candidate: expected a Features, got int"):
        mg.top_k(scorer, places(2), [places(5), 1], 1)  # pyright: ignore[reportArgumentType]


@given(pairs(items=6), blocks)
def test_property_scoring_keeps_no_graph_and_reports_every_pair(device, pair, block):
    text, video = pair.to(device)
    text["sentence"].features.requires_grad_()
    calls: list[tuple[int, int]] = []
    matrix = mg.score_matrix(mg.MultiGrain(mg.VideoSentence()), text, video, block, "cpu", lambda *x: calls.append(x))
    assert not matrix.requires_grad
    assert matrix.device.type == "cpu"
    total = len(text) * len(video)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    best, _ = mg.top_k(mg.MultiGrain(mg.VideoSentence()), text, video, 1, block, device="cpu")
    assert not best.requires_grad
    assert best.device.type == "cpu"
    close(best[:, 0], matrix.amax(1), 1e-12)


class Given(nn.Module):
    """Scores that are there, of items called by their places."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, query: mg.Features, candidate: mg.Features) -> Tensor:
        rows, columns = (x["place"].features[:, 0].long() for x in (query, candidate))
        return self.scores[rows][:, columns]


def places(count: int) -> mg.Features:
    return mg.Features(place=torch.arange(count)[:, None].float())


@pytest.mark.parametrize("block", [1, 2, 3, 256])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (4, 2), (6, 4)])
def test_nan_never_ranks(row, column, k, block):
    scores = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    scores[row, column] = torch.nan
    scores[row, 1] = torch.inf
    with pytest.raises(ValueError, match=rf"scores: expected numbers, got NaN at row {row}, column {column}"):
        mg.top_k(Given(scores), places(7), places(5), k, block=block)
    parts = (places(5)[i : i + 2] for i in range(0, 5, 2))
    with pytest.raises(ValueError, match=rf"scores: expected numbers, got NaN at row {row}, column {column}"):
        mg.top_k(Given(scores), places(7), parts, k, block=block)
    with pytest.raises(ValueError, match=rf"scores: expected numbers, got NaN at row {row}, column {column}"):
        mg.rerank(scores, Given(torch.ones(7, 5)), k, places(7), places(5))
    if k == 5:
        with pytest.raises(ValueError, match=rf"scores: expected numbers, got NaN at row {row}, column {column}"):
            mg.rerank(torch.randn(7, 5), Given(scores), k, places(7), places(5))
