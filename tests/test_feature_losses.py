"""TokenNCE, Decorrelation and Distillation: identities and loops, and what a loss of features must not depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from tests import oracle
from tests.strategies import POISONS, Pair, close, gradients, leaves, numbers, pairs, poisoned

LOSSES: dict[str, Callable[[], mg.losses.Loss]] = {
    "token": lambda: mg.losses.TokenNCE(),
    "token, unweighted": lambda: mg.losses.TokenNCE(weights=None),
    "decorrelation": lambda: mg.losses.Decorrelation(),
    "weighted decorrelation": lambda: mg.losses.Decorrelation(weights=("word_weight", "frame_weight")),
    "pearson": lambda: mg.losses.Distillation(mg.VideoSentence(), mg.FrameWord("mean_max"), scale=4.0),
    "kl": lambda: mg.losses.Distillation(mg.FrameWord("mean_max"), mg.VideoSentence(), "kl", 4.0, 2.0),
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


@st.composite
def batches(draw: st.DrawFn) -> Pair:
    """As many texts as videos, with weights from 0 for words and frames."""
    drawn = draw(pairs())
    size = min(len(drawn.text), len(drawn.video))

    def weighted(features: mg.Features, grain: str) -> mg.Features:
        weights = numbers(draw, size, features[grain].length, 1).clamp_min(0)
        grains = {name: features[name][:size] for name in features.names}
        return mg.Features(**grains, **{f"{grain}_weight": (weights, grains[grain].mask)})

    return Pair(weighted(drawn.text, "word"), weighted(drawn.video, "frame"), drawn.dim)


@every_loss
@given(batches(), st.sampled_from(POISONS))
def test_property_padding_changes_no_loss_of_features_and_no_gradient(make, device, pair, poison):
    loss, found = make().double().to(device), []
    for change in (lambda x: x, lambda x: poisoned(x, poison), padded):
        sides = [leaves(change(x)) for x in pair.to(device)]
        value = loss(*sides)
        if value.requires_grad:
            value.backward()
        found.append([value, *(real(x, y.length) for f, g in zip(sides, pair, strict=True) for x, y in tokens(f, g))])
    for other in found[1:]:
        assert len(other) == len(found[0])
        for a, b in zip(other, found[0], strict=True):
            close(a, b, 1e-9)


def tokens(features: mg.Features, like: mg.Features) -> list[tuple[mg.Tokens, mg.Tokens]]:
    return [(features[name], like[name]) for name in features.names if features[name].features.grad is not None]


def real(x: mg.Tokens, length: int) -> Tensor:
    """The gradient at the first tokens; it is finite everywhere."""
    assert x.features.grad.isfinite().all()
    return x.features.grad if x.features.ndim == 2 else x.features.grad[:, :length]


def padded(features: mg.Features) -> mg.Features:
    """Two more slots for each grain of tokens."""

    def pad(x: mg.Tokens) -> mg.Tokens:
        if x.features.ndim == 2:
            return x
        mask = torch.ones(len(x), x.length, dtype=torch.bool, device=x.device) if x.mask is None else x.mask
        return mg.Tokens(F.pad(x.features, (0, 0, 0, 2), value=torch.nan), F.pad(mask, (0, 2)))

    return mg.Features(**{name: pad(features[name]) for name in features.names})


@every_loss
@given(batches(), st.randoms(use_true_random=False))
def test_property_the_order_of_pairs_and_tokens_changes_no_loss_of_features(make, device, pair, random):
    loss, (text, video) = make().double().to(device), pair.to(device)
    order = random.sample(range(len(text)), len(text))
    ids = torch.tensor([random.randrange(3) for _ in order], device=device)
    close(loss(text[order], video[order]), loss(text, video), 1e-9)
    close(loss(text[order], video[order], ids[order]), loss(text, video, ids), 1e-9)
    close(loss(text[order], video[order], (ids[order], ids[order])), loss(text, video, ids), 1e-9)

    def reversed_tokens(features: mg.Features) -> mg.Features:
        parts = {name: features[name] for name in features.names}
        return mg.Features(
            **{
                name: x if x.features.ndim == 2 else (x.features.flip(1), None if x.mask is None else x.mask.flip(1))
                for name, x in parts.items()
            }
        )

    close(loss(reversed_tokens(text), reversed_tokens(video)), loss(text, video), 1e-9)


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_every_loss_of_features_passes_gradcheck(make, seed, device):
    """Of enough tokens that no channel is all but constant."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"sentence": (4, 3), "word": (4, 3, 3), "video": (4, 3), "frame": (4, 2, 3)}
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]
    inputs = [x.to(device).requires_grad_() for x in inputs]
    mask = torch.tensor([[True, True, False], [True, True, True]], device=device).repeat(2, 1)
    weights = [torch.rand(4, n, 1, generator=generator, dtype=torch.float64).to(device) for n in (3, 2)]
    loss = make().double().to(device)

    def value(sentence: Tensor, word: Tensor, video: Tensor, frame: Tensor) -> Tensor:
        text = mg.Features(sentence=sentence, word=(word, mask), word_weight=weights[0])
        return loss(text, mg.Features(video=video, frame=frame, frame_weight=weights[1]))

    if isinstance(
        loss, mg.losses.Distillation
    ):  # to a teacher's features its loss is a constant, whatever they do to it
        taught = (0, 2) if loss.kind == "pearson" else (1, 3)
        inputs = [x if i in taught else x.detach() for i, x in enumerate(inputs)]
    assert torch.autograd.gradcheck(value, inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@given(batches(), st.sampled_from([0.0, 1e-2, 1e2]))
def test_property_losses_of_features_have_finite_gradients_in_every_dtype(make, dtype, device, pair, size):
    pair.text, pair.video = (
        mg.Features(**{n: (x[n].features * (1 if "weight" in n else size), x[n].mask) for n in x.names}) for x in pair
    )
    sides = [leaves(side.to(device, dtype)) for side in pair]
    loss = make().to(device)(*sides)
    assert loss.isfinite() and loss.dtype == torch.float32
    if loss.requires_grad:
        loss.backward()
    assert all(x.isfinite().all() for x in gradients(*sides))


def loud(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_one_token_of_weight_one_is_info_nce_of_max_scores(device):
    text = mg.Features(word=loud(4, 5, 3), word_weight=F.one_hot(torch.tensor([0, 3, 2, 2]), 5)[..., None].double())
    text, video = text.to(device), mg.Features(frame=loud(4, 2, 3)).to(device)
    chosen = mg.Features(word=text["word"].features[range(4), [0, 3, 2, 2]])
    for settings_ in ({}, {"direction": "query"}, {"direction": "candidate"}, {"label_smoothing": 0.1}):
        criterion = mg.InfoNCE(**settings_).double().to(device)
        loss = mg.losses.TokenNCE(criterion=criterion)
        for ids in (None, torch.tensor([5, 6, 5, 7], device=device)):
            expected = criterion(mg.Grain("word", "frame", mg.MaxMax())(chosen, video), ids)
            close(loss(text, video, ids), expected, 1e-12)


@given(batches(), st.data())
def test_property_token_nce_equals_oracle(device, pair, data):
    text, video = pair.to(device)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(text), max_size=len(text))), device=device)
    loss, weights = mg.losses.TokenNCE().double().to(device), text["word_weight"].features[..., 0].clone()
    if text["word"].mask is not None:
        weights[~text["word"].mask] = 0
    chosen = weights > 0
    if not chosen.any():
        assert loss(text, video, ids) == 0
        return
    query = mg.Features(word=text["word"].features[chosen])
    scores = mg.Grain("word", "frame", mg.MaxMax())(query, video)
    owners = ids.repeat_interleave(chosen.sum(1)).tolist()
    scale = loss.criterion.logit_scale.exp().item()
    expected = oracle.token_nce(scores.tolist(), weights[chosen].tolist(), owners, ids.tolist(), scale)
    close(loss(text, video, ids), torch.tensor(expected, dtype=torch.float64), 1e-9)
    scaled = mg.Features(word=text["word"], word_weight=(7 * text["word_weight"].features, text["word_weight"].mask))
    close(loss(scaled, video, ids), loss(text, video, ids), 1e-9)  # ratios alone count
    leaf = leaves(text)
    loss(leaf, video, ids).backward()
    assert (leaf["word"].features.grad[~chosen] == 0).all() and leaf["word_weight"].features.grad is None


@given(batches())
def test_property_decorrelation_equals_loops_over_channels(device, pair):
    text, video = pair.to(device)
    loss = mg.losses.Decorrelation(on_diagonal=0.7, off_diagonal=0.2).double().to(device)
    query, candidate, dim = text["word"].normalized(), video["frame"].normalized(), pair.dim
    c = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for a, b, transposed in ((query, candidate, False), (candidate, query, True)):
        matched = []
        for i in range(len(text)):
            mine = [a.features[i, m] for m in range(a.length) if a.mask is None or a.mask[i, m]]
            others = [b.features[i, n] for n in range(b.length) if b.mask is None or b.mask[i, n]]
            matched += [(x, max(others, key=lambda y, x=x: float(x @ y))) for x in mine if others]
        if len(matched) < 2:
            continue
        x, y = (torch.stack(side) for side in zip(*matched, strict=True))
        pearson = torch.corrcoef(torch.cat([x, y], 1).T)[:dim, dim:]
        constant = (x.var(0, correction=0) <= 1e-12)[:, None] | (y.var(0, correction=0) <= 1e-12)
        part = torch.where(constant, 0.0, pearson)
        c += (part.T if transposed else part) / 2
    off = c - c.diagonal().diag()
    close(loss(text, video), 0.7 * (c.diagonal() - 1).square().sum() + 0.2 * off.square().sum(), 1e-8)
    ones = [mg.Features(**{g: f[g], f"{g}_weight": 3 * torch.ones_like(f[g].features[..., :1])}) for f, g in
            ((text, "word"), (video, "frame"))]  # fmt: skip
    weighted = mg.losses.Decorrelation("word", "frame", ("word_weight", "frame_weight"), 0.7, 0.2)
    close(weighted(*ones), loss(text, video), 1e-9)


@given(batches())
def test_property_decorrelation_by_learned_weights_is_that_by_the_same_weights_given(device, pair):
    text, video = pair.to(device)
    torch.manual_seed(0)
    tokens = mg.TokenWeighted(pair.dim).double().to(device)
    learned = mg.losses.Decorrelation(weights=tokens)
    assert learned.reads == (frozenset({"word"}), frozenset({"frame"}))
    given_weights = [
        mg.Features(**{grain: side[grain], f"{grain}_weight": tokens.weigh(name, side, grain)[..., None].detach()})
        for name, side, grain in (("query", text, "word"), ("candidate", video, "frame"))
    ]
    close(learned(text, video), mg.losses.Decorrelation(weights=("word_weight", "frame_weight"))(*given_weights), 1e-12)
    idf = mg.TokenWeighted(query_weights="word_weight", direction="query")
    assert mg.losses.Decorrelation(weights=idf).reads == (frozenset({"word", "word_weight"}), frozenset({"frame"}))


def test_decorrelation_is_zero_where_sides_agree_and_channels_do_not(device):
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], device=device)
    text, video = mg.Features(word=signs), mg.Features(frame=signs)
    assert mg.losses.Decorrelation()(text, video).item() == pytest.approx(0, abs=1e-6)
    assert mg.losses.Decorrelation()(text, mg.Features(frame=-signs)).item() == pytest.approx(2 * 2**2, rel=1e-5)
    constant = leaves(mg.Features(word=torch.ones(4, 2, device=device)))
    loss = mg.losses.Decorrelation()(constant, video)
    loss.backward()
    assert loss == 2 and (constant["word"].features.grad == 0).all()


@pytest.mark.parametrize("kind", ["pearson", "kl"])
@given(batches(), st.floats(0.5, 20.0))
def test_property_a_student_like_its_teacher_has_nothing_to_learn(kind, device, pair, scale):
    text, video = (leaves(x) for x in pair.to(device))
    scorer = mg.MultiGrain(mg.FrameWord("mean_max"))
    loss = mg.losses.Distillation(scorer, scorer, kind, scale)
    value, scores = loss(text, video), scorer(text, video).detach()
    spread = [(x - x[:, :1]).abs().amax(1) for x in (scores, scores.T)]
    if kind == "kl" or min(x.min() for x in spread) > 1e-6:
        close(value, torch.zeros_like(value), 1e-8)
    elif max(x.max() for x in spread) == 0:  # nothing correlates with what does not vary
        close(value, torch.full_like(value, 2.0), 1e-8)
    value.backward()
    assert all(x.abs().max() < 1e-5 for x in gradients(text, video))


@given(batches())
def test_property_distillation_equals_its_formula(device, pair):
    text, video = pair.to(device)
    student, teacher = mg.VideoSentence(), mg.FrameWord("mean_max")
    p, t = 4.0 * student(text, video), 2.0 * teacher(text, video)
    kl = [F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") for a, b in ((p, t), (p.T, t.T))]
    close(mg.losses.Distillation(student, teacher, "kl", 4.0, 2.0)(text, video), sum(kl), 1e-10)
    close(mg.losses.Distillation(student, teacher, "kl", 4.0, 2.0, "mean")(text, video), sum(kl) / 2, 1e-10)
    for direction, (a, b) in {"query": (p, t), "candidate": (p.T, t.T)}.items():
        if len(a) == 1 or a.shape[1] == 1:
            continue
        stacked = [torch.stack(rows) for rows in zip(a.softmax(1), b.softmax(1), strict=True)]
        rho = torch.stack([torch.corrcoef(rows)[0, 1] for rows in stacked])
        if all(rows.std(1).min() > 1e-9 for rows in stacked):
            loss = mg.losses.Distillation(student, teacher, "pearson", 4.0, 2.0, direction=direction)
            close(loss(text, video), (1 - rho).mean(), 1e-8)


@pytest.mark.parametrize("kind", ["pearson", "kl"])
def test_the_teacher_gets_no_gradient(kind, device):
    text = leaves(mg.Features(sentence=loud(4, 3), teacher_sentence=loud(4, 6)).to(device))
    video = leaves(mg.Features(video=loud(4, 3), teacher_video=loud(4, 6)).to(device))
    teacher = mg.Grain("teacher_sentence", "teacher_video", bilinear=6).double().to(device)
    mg.losses.Distillation(mg.VideoSentence(), teacher, kind)(text, video).backward()
    for features in (text, video):
        assert [features[name].features.grad is None for name in features.names] == [False, True]
    assert teacher.bilinear.grad is None


def test_what_does_not_fit_is_named():
    text, video = mg.Features(word=torch.randn(2, 3, 4)), mg.Features(frame=torch.randn(2, 3, 4))
    with pytest.raises(KeyError, match="no grain 'word_weight': these features have word"):
        mg.losses.TokenNCE()(text, video)
    bad = mg.Features(word=torch.randn(2, 3, 4), word_weight=torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"word_weight: expected weights of shape \[2, 3, 1\], .* word, got \[2, 1, 3\]"
    ):
        mg.losses.TokenNCE()(bad, video)
    with pytest.raises(ValueError, match=r"expected as many videos as texts \(2"):
        mg.losses.Decorrelation()(text, video[:1])
    with pytest.raises(ValueError, match=r"video: expected as many as texts \(2\), text i with video i, got 1"):
        mg.losses.Decorrelation()(text, video[:1], (torch.zeros(2).long(), torch.zeros(1).long()))
    with pytest.raises(ValueError, match="grain 'word-frame': expected query and candidate features of the same width"):
        mg.losses.Decorrelation()(text, mg.Features(frame=torch.randn(2, 3, 5)))
    with pytest.raises(ValueError, match="ids: expected a positive for every query, got none for query 1"):
        mg.losses.TokenNCE(weights=None)(text, video, (torch.tensor([0, 7]), torch.tensor([0, 0])))


class Given(torch.nn.Module):
    """A scorer of scores that are there."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, query: mg.Features, candidate: mg.Features) -> torch.Tensor:
        return self.scores


@pytest.mark.parametrize("kind", ["pearson", "kl"])
@pytest.mark.parametrize("out", [-torch.inf, -1e6])
def test_distillation_leaves_out_pairs_of_minus_infinity(kind, out):
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    student, teacher = Given(scores.clone()), Given(scores.flip(0).clone())
    with torch.no_grad():
        student.scores[0, 1] = teacher.scores[0, 1] = out
    features = mg.Features(a=torch.ones(3, 2)), mg.Features(b=torch.ones(4, 2))
    loss = mg.losses.Distillation(student, teacher, kind, 4.0, direction="query")(
        *features, (torch.arange(3), torch.arange(4))
    )
    loss.backward()
    dropped = [Given(x.scores.detach()[:1, [0, 2, 3]]) for x in (student, teacher)]
    rest = [Given(x.scores.detach()[1:]) for x in (student, teacher)]
    if kind == "kl":  # a correlation counts a share of 0 too
        parts = [
            mg.losses.Distillation(*x, kind, 4.0, direction="query").compute(*features, None) for x in (dropped, rest)
        ]
        close(loss, (parts[0] + 2 * parts[1]) / 3, 1e-9)
    assert loss.isfinite() and student.scores.grad.isfinite().all()
    student.scores.data[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"scores of student: .* got NaN at row 2, column 3"):
        mg.losses.Distillation(student, teacher, kind).compute(*features, None)
