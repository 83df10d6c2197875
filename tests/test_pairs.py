"""CrossEncoder, SegmentScorer and rerank: what a score depends on, blocks, and what stays where it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from multigrain import cross_encoder as pairs_module
from tests.strategies import POISONS, Pair, close, gradients, leaves, map_grains, numbers, pairs, poisoned, randomise


def encoder(pair: Pair, device: torch.device, seed: int = 0, **settings: Any) -> mg.cross_encoder.CrossEncoder:
    made = mg.cross_encoder.CrossEncoder(pair.dim, depth=2, heads=1, **settings)
    return randomise(made, seed).double().to(device)  # type: ignore[return-value]


def aligned(pair: Pair) -> tuple[mg.Features, mg.Features]:
    size = min(len(pair.text), len(pair.video))
    return pair.text[:size], pair.video[:size]


def mask_of(tokens: mg.Tokens) -> Tensor:
    return torch.ones(len(tokens), tokens.length, dtype=torch.bool) if tokens.mask is None else tokens.mask.cpu()


# CrossEncoder


@given(pairs())
def test_property_a_score_is_that_of_its_pair_with_its_real_tokens_alone(device, pair):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    scores = scorer(*pair)
    words, frames = pair.text["word"], pair.video["frame"]
    for i, real_words in enumerate(mask_of(words)):
        for j, real_frames in enumerate(mask_of(frames)):
            if not (real_words.any() and real_frames.any()):
                assert scores[i, j] == 0
                continue
            text = mg.Features(word=words.features[i : i + 1, real_words.to(device)])
            video = mg.Features(frame=frames.features[j : j + 1, real_frames.to(device)])
            no, yes = scorer.pairs(text, video)[0]
            close(scores[i, j], yes - no)


@given(pairs(), st.sampled_from(POISONS))
def test_property_what_is_behind_a_mask_changes_neither_pair_scores_nor_gradients(device, pair, poison):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    results = []
    for change in (lambda f: f, lambda f: poisoned(f, poison)):
        text, video = leaves(change(pair.text)), leaves(change(pair.video))
        scorer.zero_grad()
        scores = scorer(text, video)
        scores.sum().backward()
        results.append([scores, *gradients(text, video), *(p.grad for p in scorer.parameters())])
    for plain, spoiled in zip(*results, strict=True):
        close(spoiled, plain, 0.0)


@given(pairs(), st.data())
def test_property_pair_scores_do_not_depend_on_token_order_batch_or_vector_length(device, pair, data):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    scores = scorer(*pair)

    def shuffled(tokens: mg.Tokens) -> mg.Tokens:
        tokens = tokens.tokenwise()
        order = torch.tensor(data.draw(st.permutations(range(tokens.length))), device=device)
        return mg.Tokens(3 * tokens.features[:, order], None if tokens.mask is None else tokens.mask[:, order])

    close(scorer(map_grains(pair.text, shuffled), map_grains(pair.video, shuffled)), scores)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(pair.text) - 1), min_size=1, max_size=4)))
    columns = torch.tensor(data.draw(st.lists(st.integers(0, len(pair.video) - 1), min_size=1, max_size=4)))
    rows, columns = rows.to(device), columns.to(device)
    close(scorer(pair.text[rows], pair.video[columns]), scores[rows][:, columns])


@given(pairs(items=5), st.integers(1, 60))
def test_property_blocks_of_pairs_give_the_scores_logits_and_gradients_of_the_whole(device, pair, elements):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    results = []
    for size in (1 << 20, elements * pair.dim):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairs_module, "ELEMENTS", size)
            text, video = leaves(pair.text), leaves(pair.video)
            scorer.zero_grad()
            scores, logits = scorer(text, video), scorer.pairs(*aligned(Pair(text, video, pair.dim)))
            (scores.square().sum() + logits.square().sum()).backward()
            results.append([scores, logits, *gradients(text, video), *(p.grad for p in scorer.parameters())])
    for whole, blocks in zip(*results, strict=True):
        close(blocks, whole)


@given(pairs())
def test_property_aligned_pairs_are_the_diagonal_of_all(device, pair):
    pair = pair.to(device)
    text, video = aligned(pair)
    scorer = encoder(pair, device)
    logits = scorer.pairs(text, video)
    assert logits.shape == (len(text), 2)
    close(logits[:, 1] - logits[:, 0], scorer(text, video).diag())


@given(pairs(masks=("empty",)))
def test_property_an_empty_item_has_pair_score_zero_and_moves_nothing(device, pair):
    text, video = leaves(pair.to(device).text), leaves(pair.to(device).video)
    scores = encoder(pair, device)(text, video)
    no_words = ~mask_of(text["word"]).any(1)
    assert no_words.any()
    assert (scores[no_words.to(device)] == 0).all()
    assert (scores[:, ~mask_of(video["frame"]).any(1).to(device)] == 0).all()
    scores[no_words.to(device)].sum().backward()
    assert all((gradient == 0).all() for gradient in gradients(text, video))


@settings(max_examples=5)
@given(pairs(items=2, tokens=2))
def test_property_cross_encoder_passes_gradcheck(device, pair):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    words, frames = pair.text["word"], pair.video["frame"]

    def scores(w: Tensor, f: Tensor, *_: Tensor) -> Tensor:
        return scorer(mg.Features(word=(w, words.mask)), mg.Features(frame=(f, frames.mask)))

    inputs = [x.features.clone().requires_grad_() for x in (words, frames)]
    assert torch.autograd.gradcheck(scores, (*inputs, scorer.cls, scorer.sides, scorer.head.weight))


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 6e4), (torch.float16, 0.1), (torch.bfloat16, 1e15), (torch.float32, 1e-30)]
)
@given(pairs())
def test_property_pair_gradients_are_finite_at_extremes(device, dtype, size, pair):
    torch.manual_seed(0)
    scorer = mg.cross_encoder.CrossEncoder(pair.dim, depth=1, heads=1).to(device)
    extreme = [map_grains(f, lambda t: mg.Tokens((size * t.features.sign()).to(dtype), t.mask)) for f in pair]
    text, video = (leaves(f.to(device)) for f in extreme)
    scores = scorer(text, video)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert scores.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(text, video))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scorer.parameters())


def test_half_parameters_and_autocast_score_in_fp32(device):
    torch.manual_seed(0)
    text = mg.Features(word=torch.randn(3, 4, 8, device=device))
    video = mg.Features(frame=torch.randn(2, 5, 8, device=device))
    scorer = mg.cross_encoder.CrossEncoder(8, 1, 2).to(device)
    scores = scorer(text, video)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(scorer(text, video), scores, 0.05)
    close(scorer.bfloat16()(text, video), scores, 0.05)


def test_training_holds_the_inside_of_one_block_at_a_time(device, monkeypatch: pytest.MonkeyPatch):
    """Tensors that autograd saves, outside of checkpoints, are the features and the scores."""
    text = mg.Features(word=torch.randn(8, 6, 16, device=device, requires_grad=True))
    video = mg.Features(frame=torch.randn(8, 5, 16, device=device, requires_grad=True))
    scorer = mg.cross_encoder.CrossEncoder(16, 3, 2).to(device)

    def count(elements: int) -> int:
        monkeypatch.setattr(pairs_module, "ELEMENTS", elements)
        saved: list[int] = []

        def pack(x: Tensor) -> Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scorer(text, video).sum()
        return sum(saved)

    assert count(16 * 12 * 8) * 20 < count(1 << 20)


def test_dropout_of_a_block_is_the_same_when_it_is_computed_again(device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairs_module, "ELEMENTS", 16 * 12 * 2)
    torch.manual_seed(0)
    text = mg.Features(word=torch.randn(3, 6, 16, device=device, dtype=torch.float64))
    video = mg.Features(frame=torch.randn(3, 5, 16, device=device, dtype=torch.float64))
    scorer = mg.cross_encoder.CrossEncoder(16, 1, 2, dropout=0.5).double().to(device)
    scorer.cls.requires_grad_()

    def loss(cls: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.func.functional_call(scorer, {"cls": cls}, (text, video))

    assert torch.autograd.gradcheck(loss, (scorer.cls.detach().clone().requires_grad_(),))


def test_a_cross_encoder_learns_what_no_product_of_features_shows(device):
    """Whether two signs agree with a third: an exclusive or, of tokens on both sides."""
    torch.manual_seed(0)
    signs = torch.tensor([[-1.0], [1.0]], device=device)
    axes = torch.eye(8, device=device)
    text = mg.Features(word=torch.stack([axes[:1].expand(2, 8), signs * axes[1]], 1))
    video = mg.Features(frame=(signs * axes[2])[:, None])
    scorer = mg.cross_encoder.CrossEncoder(8, 1, 2).to(device)
    optimizer = torch.optim.Adam(scorer.parameters(), 0.02)
    for _ in range(60):
        loss = mg.InfoNCE(init_logit_scale=0.0, learn_logit_scale=False).to(device)(scorer(text, video))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = scorer(text, video)
    assert scores.argmax(1).tolist() == scores.argmax(0).tolist() == [0, 1]
    assert loss < 0.05


# SegmentScorer


def cut(video: mg.Features, length: int) -> list[mg.Features]:
    """The segments of one video that have a real frame."""
    frames, real = video["frame"].features[0], mask_of(video["frame"])[0]
    spans = [slice(i, i + length) for i in range(0, len(frames), length)]
    return [
        mg.Features(video=video["video"], frame=(frames[s][None], real[s][None].to(frames.device)))
        for s in spans
        if real[s].any()
    ]


@pytest.mark.parametrize("name", ["mean_mean", "max_max", "logsumexp"])
@given(pair=pairs(tokens=6), length=st.integers(1, 7))
def test_property_segments_are_scored_as_videos_of_their_own(device, name, pair, length):
    pair = pair.to(device)
    inner = mg.MultiGrain(mg.FrameWord("mean_max"), mg.VideoSentence())
    scores = mg.cross_encoder.SegmentScorer(inner, length, name)(*pair)
    pool = {"mean_mean": torch.mean, "max_max": torch.amax, "logsumexp": lambda x, d: 0.1 * (x / 0.1).logsumexp(d)}
    for j, video in enumerate(pair.video):
        parts = cut(video, length)
        if not parts:
            assert (scores[:, j] == 0).all()
            continue
        close(scores[:, j], pool[name](torch.cat([inner(pair.text, part) for part in parts], 1), 1))


def test_an_empty_query_scores_zero_against_any_number_of_segments(device):
    query = torch.tensor([[True, True], [False, False]], device=device)
    frames = torch.arange(5, device=device) < torch.tensor([[5], [2]], device=device)
    torch.manual_seed(0)
    text = mg.Features(word=(torch.randn(2, 2, 8, device=device), query))
    video = mg.Features(frame=(torch.randn(2, 5, 8, device=device), frames))
    scorer = mg.cross_encoder.SegmentScorer(mg.cross_encoder.CrossEncoder(8, 1, 2).to(device), 2, mg.LogSumExp(1.0))
    scores = scorer(text, video)
    assert (scores[1] == 0).all() and (scores[0] != 0).all()


def test_scorers_of_pairs_tell_what_they_read():
    cross = mg.cross_encoder.CrossEncoder(8, 1, 2, query="phrase", candidate="patch")
    assert cross.reads == (frozenset({"phrase"}), frozenset({"patch"}))
    segments = mg.cross_encoder.SegmentScorer(mg.MultiGrain(mg.VideoSentence(), mg.FrameWord()), 2)
    assert segments.reads == (frozenset({"sentence", "word"}), frozenset({"video", "frame"}))
    assert mg.cross_encoder.SegmentScorer(lambda query, candidate: None, 2).reads is None


@given(pairs(tokens=6), st.integers(1, 7))
def test_property_pooled_segments_bound_each_other_and_one_segment_is_no_segment(device, pair, length):
    pair = pair.to(device)
    inner = mg.Grain("word", "frame", "mean_max")
    mean, largest, smooth = (
        mg.cross_encoder.SegmentScorer(inner, length, pool)(*pair)
        for pool in (mg.MeanMean(), mg.MaxMax(), mg.LogSumExp(1.0))
    )
    frames = mask_of(pair.video["frame"])
    count = torch.stack([part.any(1) for part in frames.split(length, 1)]).sum(0)
    some = (count > 0).to(device) & mask_of(pair.text["word"]).any(1).to(device)[:, None]
    slack = 1e-12
    assert (mean <= largest + slack).all()
    assert (largest <= smooth + slack)[some].all()
    assert (smooth - count.clamp_min(1).log().to(smooth) <= largest + slack)[some].all()
    one = (count == 1).to(device) & some
    whole = inner(*pair)
    for pooled in (mean, largest, smooth):
        close(pooled[one], whole[one])


@given(pairs(tokens=5), st.integers(1, 4), st.integers(1, 9), st.sampled_from(POISONS))
def test_property_padded_segments_change_nothing(device, pair, length, more, poison):
    pair = pair.to(device)
    scorer = mg.cross_encoder.SegmentScorer(mg.Grain("word", "frame", "mean_max"), length, "logsumexp")
    frames = pair.video["frame"]
    features = F.pad(frames.features, (0, 0, 0, more), value=poison)
    mask = F.pad(mask_of(frames).to(device), (0, more))
    text, video = leaves(pair.text), leaves(poisoned(mg.Features(frame=(features, mask)), poison))
    scores = scorer(text, video)
    close(scores, scorer(*pair))
    scores.sum().backward()
    gradient = video["frame"].features.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()


@given(pairs(masks=("none",), tokens=6), st.integers(1, 3))
def test_property_clipbert_s_lse_loss_is_cross_entropy_of_pooled_logits(device, pair, length):
    """LSE over segments and candidates, minus LSE over the segments of the label."""
    pair = pair.to(device)
    text, video = aligned(pair)
    scorer = encoder(pair, device)
    pooled = mg.cross_encoder.SegmentScorer(scorer, length, mg.LogSumExp(1.0))(text, video)
    by_segment = torch.stack([torch.cat([scorer(text, part) for part in cut(v, length)], 1) for v in video], 1)
    labels = torch.arange(len(text), device=device)
    of_label = by_segment[labels, labels].logsumexp(1)
    close(F.cross_entropy(pooled, labels), (by_segment.flatten(1).logsumexp(1) - of_label).mean())


# rerank


class Fixed:
    """Scores of items that carry their number; counts what it is asked."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.asked = scores, 0

    def __call__(self, text: mg.Features, video: mg.Features) -> Tensor:
        rows, columns = text["i"].features[:, 0].long(), video["i"].features[:, 0].long()
        self.asked += len(rows) * len(columns)
        return self.scores[rows][:, columns]


def items(count: int, device: torch.device) -> mg.Features:
    return mg.Features(i=torch.arange(count, dtype=torch.float64, device=device)[:, None])


@st.composite
def two_stages(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    q, c = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    first, second = numbers(draw, q, c), draw(st.sampled_from([1e-3, 1.0, 1e6])) * numbers(draw, q, c)
    return (2 * first).round() / 2 if draw(st.booleans()) else first, second, draw(st.integers(1, c))


@given(two_stages())
def test_property_reranked_stay_above_the_rest_which_keeps_its_order(device, problem):
    first, second, k = (x.to(device) if isinstance(x, Tensor) else x for x in problem)
    scorer = Fixed(second)
    before = first.clone()
    out = mg.rerank(first, scorer, k, items(len(first), device), items(first.shape[1], device))
    assert torch.equal(first, before)
    assert scorer.asked == k * len(first)
    for old, new, dear in zip(first, out, second, strict=True):
        order = old.sort(descending=True, stable=True).indices
        best, rest = order[:k], order[k:]
        close(new[best], dear[best], 0.0)
        assert (new[rest][:, None] < new[best]).all()
        assert torch.equal(old[rest][:, None] < old[rest], new[rest][:, None] < new[rest])


@given(pairs())
def test_property_reranking_all_is_scoring_all_pairs(device, pair):
    pair = pair.to(device)
    scorer = encoder(pair, device)
    first = mg.VideoSentence()(*pair)
    close(mg.rerank(first, scorer, len(pair.video), *pair), scorer(*pair))
    back = mg.rerank(first.T, lambda v, t: scorer(t, v).T, len(pair.text), pair.video, pair.text)
    close(back.T, scorer(*pair))
    assert not back.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_rest_stays_in_order_beside_scores_of_any_size(device, dtype):
    first = torch.linspace(1, 0, 50, device=device)[None].to(dtype)
    for size in (1e-30, 1.0, 1e4, -1e30):
        second = torch.full((1, 50), size, device=device)
        out = mg.rerank(first, Fixed(second), 3, items(1, device), items(50, device))
        assert out.isfinite().all()
        assert (out[0, 3:].diff() < 0).all()
        assert out[0, 3] < out[0, 2]


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, v: mg.cross_encoder.CrossEncoder(0), "dim: expected an integer from 1, got 0"),
        (lambda t, v: mg.cross_encoder.CrossEncoder(8, depth=0), "depth: expected an integer from 1, got 0"),
        (lambda t, v: mg.cross_encoder.CrossEncoder(8, heads=3), "heads: expected a divisor of width 8, got 3"),
        (lambda t, v: mg.cross_encoder.CrossEncoder(4)(t, v), "heads: expected a divisor"),
        (
            lambda t, v: mg.cross_encoder.CrossEncoder(4, heads=2)(t, v),
            "grain 'word-frame': expected features of width 4, got 8",
        ),
        (
            lambda t, v: mg.cross_encoder.CrossEncoder(8).pairs(t, v),
            "candidate: expected as many items as queries, 2, got 3",
        ),
        (lambda t, v: mg.cross_encoder.SegmentScorer(mg.FrameWord(), 0), "length: expected an integer from 1, got 0"),
        (lambda t, v: mg.cross_encoder.SegmentScorer(mg.FrameWord(), 2, "lse"), "aggregator: expected one of"),
        (lambda t, v: mg.rerank(torch.rand(2, 3), mg.FrameWord(), 4, t, v), "k: expected an integer from 1 to 3"),
        (lambda t, v: mg.rerank(torch.rand(3, 2), mg.FrameWord(), 1, t, v), r"scores: expected shape \[2, 3\]"),
    ],
)
def test_bad_input_is_named(make, message):
    text, video = mg.Features(word=torch.randn(2, 4, 8)), mg.Features(frame=torch.randn(3, 5, 8))
    with pytest.raises(ValueError, match=message):
        make(text, video)


def test_a_missing_grain_is_listed():
    with pytest.raises(KeyError, match="no grain 'frame': these features have word"):
        mg.cross_encoder.SegmentScorer(mg.FrameWord(), 2)(
            mg.Features(word=torch.randn(2, 8)), mg.Features(word=torch.randn(2, 8))
        )


def test_scores_start_near_zero_log_odds(device):
    torch.manual_seed(0)
    text = mg.Features(word=torch.randn(5, 4, 32, device=device))
    video = mg.Features(frame=torch.randn(5, 3, 32, device=device))
    assert mg.cross_encoder.CrossEncoder(32, 1, 4).to(device)(text, video).abs().max() < math.log(100)
