"""Matching and the choice of its negatives: never a positive, drawn as promised, and the losses by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import multigrain as mg
from tests.strategies import Pair, close, gradients, leaves, numbers, pairs, poisoned, randomise

KINDS = ("random", "hard", "cascade")


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores [q, c] and which columns belong to which row: ids, of which some occur more than once or not at all."""
    rows = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))
    columns = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))
    return numbers(draw, len(rows), len(columns)), rows[:, None] == columns


def aligned(pair: Pair, device: torch.device) -> tuple[mg.Features, mg.Features]:
    size = min(len(pair.text), len(pair.video))
    text, video = pair.to(device)
    return text[:size], video[:size]


def scorer_of(pair: Pair, device: torch.device) -> mg.cross_encoder.CrossEncoder:
    return randomise(mg.cross_encoder.CrossEncoder(pair.dim, 1, 1)).double().to(device)  # type: ignore[return-value]


class Log(nn.Module):
    """Which pairs of items (that carry their number) were asked; their logits from a table."""

    def __init__(self, odds: Tensor) -> None:
        super().__init__()
        self.odds, self.asked = odds, list[tuple[int, int]]()

    def pairs(self, text: mg.Features, video: mg.Features) -> Tensor:
        rows, columns = (side["i"].features[:, 0].long() for side in (text, video))
        self.asked += zip(rows.tolist(), columns.tolist(), strict=True)
        odds = self.odds[rows, columns]
        return torch.stack([torch.zeros_like(odds), odds], 1)

    def forward(self, text: mg.Features, video: mg.Features) -> Tensor:
        return self.odds


def items(count: int, device: torch.device) -> mg.Features:
    return mg.Features(i=torch.arange(count, dtype=torch.float64, device=device)[:, None])


# Negatives


@pytest.mark.parametrize("kind", KINDS)
@given(problem=labelled(), k=st.integers(1, 8))
def test_property_negatives_are_no_positives_and_differ(device, kind, problem, k):
    scores, positives = (x.to(device) for x in problem)
    if kind == "random":
        chosen, real = mg.losses.random_negatives(positives, k)
    else:
        chosen, real = (mg.losses.hard_negatives if kind == "hard" else mg.losses.cascade_negatives)(
            scores, positives, k
        )
    assert chosen.shape == real.shape == (len(scores), min(k, scores.shape[1]))
    for row, mask, belongs in zip(chosen.tolist(), real.tolist(), positives.tolist(), strict=True):
        found = [column for column, is_real in zip(row, mask, strict=True) if is_real]
        assert not any(belongs[column] for column in found)
        assert len(set(found)) == len(found) == min(k, belongs.count(False))


@given(labelled(), st.integers(1, 8))
def test_property_the_cascade_keeps_the_best_in_their_order(device, problem, k):
    scores, positives = problem
    chosen, real = (x.cpu() for x in mg.losses.cascade_negatives(scores.to(device), positives.to(device), k))
    for row, mask, values, belongs in zip(chosen, real, scores.tolist(), positives.tolist(), strict=True):
        negatives = sorted((j for j in range(len(values)) if not belongs[j]), key=lambda j: -values[j])
        assert row[mask].tolist() == negatives[:k]


def test_hard_negatives_are_drawn_from_the_softmax_over_those_of_other_ids(device):
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 5.0]], device=device)
    positives = torch.tensor([[False, False, False, False, True]], device=device)
    draws = 4000
    chosen, real = mg.losses.hard_negatives(logits.expand(draws, 5), positives.expand(draws, 5))
    assert real.all()
    shares = torch.bincount(chosen[:, 0], minlength=5).double() / draws
    expected = F.pad(logits[0, :4].double().softmax(0), (0, 1))
    assert shares[4] == 0
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    even = torch.bincount(mg.losses.random_negatives(positives.expand(draws, 5))[0][:, 0], minlength=5).double() / draws
    assert even[4] == 0
    assert ((even[:4] - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / draws)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_thousand_draws_never_share_the_id(device, dtype):
    """Also where all chances but the positives' underflow, and where scores are as large as the dtype holds."""
    torch.manual_seed(0)
    ids = torch.tensor([0, 1, 0, 2, 1, 3], device=device)
    positives = ids[:, None] == ids
    for size in (1.0, torch.finfo(dtype).max):
        scores = torch.where(positives, size, -size).to(dtype)
        for _ in range(500):
            chosen, real = mg.losses.hard_negatives(scores, positives)
            assert real.all()
            assert (ids[chosen[:, 0]] != ids).all()


def test_the_seed_decides_what_is_drawn(device):
    scores, positives = torch.randn(20, 20, device=device), torch.eye(20, device=device).bool()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append((mg.losses.hard_negatives(scores, positives)[0], mg.losses.random_negatives(positives)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*draws[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*draws[1:], strict=True))


# The loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["both", "query", "candidate"])
def test_undecided_logits_lose_the_logarithm_of_two(device, kind, direction):
    blind = Log(torch.zeros(5, 5, dtype=torch.float64, device=device))
    text = items(5, device)
    loss = mg.losses.Matching(blind, kind, direction=direction)(
        text, text, torch.tensor([0, 1, 1, 2, 3], device=device)
    )
    close(loss, torch.tensor(math.log(2), dtype=torch.float64), 1e-12)
    choice = mg.losses.Matching(blind, kind, k=3, direction=direction, contrastive=True)
    close(choice(text, text), torch.tensor(math.log(4), dtype=torch.float64), 1e-12)


def test_which_pairs_are_asked(device):
    """ALBEF: each pair, a video for each text and a text for each video; LXMERT, OSCAR: one wrong for one right."""
    ids = torch.tensor([0, 1, 0, 2], device=device)
    torch.manual_seed(0)
    text = items(4, device)
    for direction, wrong in (("both", 8), ("query", 4), ("candidate", 4)):
        log = Log(torch.randn(4, 4, device=device))
        mg.losses.Matching(log, "random", direction=direction)(text, text, ids)
        assert log.asked[:4] == [(i, i) for i in range(4)]
        assert len(log.asked) == 4 + wrong
        assert all(ids[i] != ids[j] for i, j in log.asked[4:])
        first, second = log.asked[4:8], log.asked[8:]
        if direction != "candidate":
            assert [i for i, _ in first] == [0, 1, 2, 3]
        if direction != "query":
            assert [j for _, j in second or first] == [0, 1, 2, 3]


@given(numbers_seed=st.integers(0, 1000), size=st.integers(1, 6), k=st.integers(1, 6))
def test_property_the_cascade_s_losses_by_hand(device, numbers_seed, size, k):
    generator = torch.Generator().manual_seed(numbers_seed)
    odds = torch.randn(size, size, generator=generator, dtype=torch.float64)
    cheap = torch.randn(size, size, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 4, (size,), generator=generator)
    texts = [[j for j in cheap[i].argsort(descending=True).tolist() if ids[i] != ids[j]][:k] for i in range(size)]
    videos = [[i for i in cheap[:, j].argsort(descending=True).tolist() if ids[i] != ids[j]][:k] for j in range(size)]
    wrong = [odds[i, j] for i in range(size) for j in texts[i]] + [odds[i, j] for j in range(size) for i in videos[j]]
    binary = torch.stack([F.softplus(-odds[i, i]) for i in range(size)] + [F.softplus(x) for x in wrong]).mean()
    by_text = [torch.stack([odds[i, i], *(odds[i, j] for j in texts[i])]).logsumexp(0) for i in range(size)]
    by_video = [torch.stack([odds[j, j], *(odds[i, j] for i in videos[j])]).logsumexp(0) for j in range(size)]
    choice = (torch.stack(by_text) / 2 + torch.stack(by_video) / 2 - odds.diag()).mean()
    for contrastive, expected in ((False, binary), (True, choice)):
        loss = mg.losses.Matching(Log(odds.to(device)), "cascade", Log(cheap.to(device)), k, contrastive=contrastive)
        close(loss(items(size, device), items(size, device), ids.to(device)), expected)


@given(pairs())
def test_property_all_negatives_are_the_contrast_of_all_pairs(device, pair):
    """With every negative, the cascade is InfoNCE of the cross-encoder's scores."""
    text, video = aligned(pair, device)
    scorer = scorer_of(pair, device)
    loss = mg.losses.Matching(scorer, "cascade", mg.VideoSentence(), k=len(text), contrastive=True)
    close(loss(text, video), mg.InfoNCE(0.0, learn_logit_scale=False).double().to(device)(scorer(text, video)))


@pytest.mark.parametrize("contrastive", [False, True])
@given(pair=pairs(), random=st.randoms(use_true_random=False))
def test_property_the_order_of_pairs_changes_no_matching_loss(device, contrastive, pair, random):
    text, video = aligned(pair, device)
    loss = mg.losses.Matching(scorer_of(pair, device), "cascade", mg.VideoSentence(), 2, contrastive=contrastive)
    order = torch.tensor(random.sample(range(len(text)), len(text)), device=device)
    ids = torch.arange(len(text), device=device) // 2
    close(loss(text[order], video[order], ids[order]), loss(text, video, ids))
    close(loss(text, video, 10 - 3 * ids), loss(text, video, ids), 1e-13)


@pytest.mark.parametrize("kind", KINDS)
@given(pair=pairs(masks=("holes", "empty")), seed=st.integers(0, 99))
def test_property_poisoned_padding_changes_no_matching_loss_and_no_gradient(device, kind, pair, seed):
    scorer, ranker = scorer_of(pair, device), mg.FrameWord("mean_max")
    results = []
    for features in aligned(pair, device), [poisoned(f, float("nan")) for f in aligned(pair, device)]:
        text, video = (leaves(f) for f in features)
        scorer.zero_grad()
        torch.manual_seed(seed)
        loss = mg.losses.Matching(scorer, kind, ranker, k=2)(text, video)
        loss.backward()
        results.append([loss, *gradients(text, video), *(p.grad for p in scorer.parameters())])
    for plain, spoiled in zip(*results, strict=True):
        close(spoiled, plain, 0.0)
        assert plain.isfinite().all()


@settings(max_examples=5)
@given(pairs(items=3, tokens=2), st.booleans())
def test_property_matching_passes_gradcheck(device, pair, contrastive):
    text, video = aligned(pair, device)
    scorer = scorer_of(pair, device)
    criterion = mg.losses.Matching(scorer, "cascade", mg.VideoSentence(), 2, contrastive=contrastive)

    def loss(w: Tensor, f: Tensor, *_: Tensor) -> Tensor:
        words = mg.Features(sentence=text["sentence"], word=(w, text["word"].mask))
        return criterion(words, mg.Features(video=video["video"], frame=(f, video["frame"].mask)))

    inputs = [x.features.clone().requires_grad_() for x in (text["word"], video["frame"])]
    assert torch.autograd.gradcheck(loss, (*inputs, scorer.head.weight, scorer.cls))


def test_the_ranker_learns_nothing(device):
    torch.manual_seed(0)
    ranker = mg.Grain("sentence", "video", bilinear=8).to(device)
    text = leaves(mg.Features(sentence=torch.randn(4, 8, device=device), word=torch.randn(4, 3, 8, device=device)))
    video = leaves(mg.Features(video=torch.randn(4, 8, device=device), frame=torch.randn(4, 5, 8, device=device)))
    mg.losses.Matching(mg.cross_encoder.CrossEncoder(8, 1, 2).to(device), "hard", ranker)(text, video).backward()
    assert ranker.bilinear is not None
    assert ranker.bilinear.grad is text["sentence"].features.grad is video["video"].features.grad is None
    assert text["word"].features.grad is not None


@pytest.mark.parametrize("contrastive", [False, True])
def test_a_batch_without_negatives_has_a_loss(device, contrastive):
    text = items(3, device)
    torch.manual_seed(0)
    odds = torch.randn(3, 3, dtype=torch.float64, device=device)
    loss = mg.losses.Matching(Log(odds), "hard", contrastive=contrastive)(
        text, text, torch.zeros(3, device=device).long()
    )
    close(loss, odds.diag().new_zeros(()) if contrastive else F.softplus(-odds.diag()).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_lose_finitely_with_finite_gradients(device, dtype, kind):
    odds = torch.full((4, 4), -3e4, dtype=dtype, device=device).fill_diagonal_(3e4).requires_grad_()
    for sign, contrastive in ((1, False), (-1, False), (-1, True)):
        loss = mg.losses.Matching(Log(sign * odds), kind, contrastive=contrastive)(items(4, device), items(4, device))
        (gradient,) = torch.autograd.grad(loss, odds)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s, t: mg.losses.Matching(mg.VideoSentence()), TypeError, "scorer: expected one with a method pairs"),
        (lambda s, t: mg.losses.Matching(s, "easy"), ValueError, "negatives: expected one of random, hard, cascade"),
        (lambda s, t: mg.losses.Matching(s, k=0), ValueError, "k: expected an integer from 1, got 0"),
        (lambda s, t: mg.losses.Matching(s, temperature=0.0), ValueError, "temperature: expected a positive finite"),
        (lambda s, t: mg.losses.Matching(s, direction="t2v"), ValueError, "direction: expected one of both, query"),
        (lambda s, t: mg.losses.Matching(s)(t, t[:2]), ValueError, "video: expected as many videos as texts, 3, got 2"),
        (
            lambda s, t: mg.losses.Matching(s)(t, t, torch.arange(2)),
            ValueError,
            r"ids: expected shape \[3\], got \[2\]",
        ),
        (
            lambda s, t: mg.losses.Matching(s)(t, t, (torch.arange(3),) * 2),
            ValueError,
            "ids: expected integers .* got 'a pair'",
        ),
        (lambda s, t: mg.losses.hard_negatives(torch.rand(2, 2), torch.eye(2) > 0, 0), ValueError, "k: expected"),
        (lambda s, t: mg.losses.hard_negatives(torch.rand(2, 3), torch.eye(2) > 0), ValueError, "positives: expected"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make(Log(torch.zeros(3, 3)), items(3, torch.device("cpu")))
