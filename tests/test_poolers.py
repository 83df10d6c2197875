"""Poolers, the head and the grain that use them: judged by the oracle, and by what a vector must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multigrain as mg
from multigrain.kernels import recompute
from multigrain.kernels.spec import Unsupported
from tests import oracle
from tests.strategies import POISONS, close, gradients, items, leaves, numbers, pairs, poisoned, randomise

POOLERS = {
    "mean": lambda dim: mg.heads.MeanPool(),
    "mean of units": lambda dim: mg.heads.MeanPool(normalize=True),
    "attention": mg.heads.AttentionPool,
}
QUERY_POOLERS = {
    "softmax": lambda dim: mg.grains.SoftmaxPool(),
    "hot softmax": lambda dim: mg.grains.SoftmaxPool(1.0),
    "cross-attention": mg.grains.CrossAttentionPool,
    "two heads": lambda dim: mg.grains.CrossAttentionPool(2 * (dim // 2), heads=2),
}
every_pooler = pytest.mark.parametrize("kind", POOLERS)
every_query_pooler = pytest.mark.parametrize("kind", QUERY_POOLERS)


def even(pair, kind):
    """The pair, of an even width where there are two heads."""
    if kind != "two heads" or pair.dim % 2 == 0:
        return pair
    text, video = (mg.Features(**{n: mg.Tokens(f[n].features[..., :-1], f[n].mask) for n in f.names}) for f in pair)
    return type(pair)(text, video, pair.dim - 1)


def pooler(kind, dim, device):
    build = (POOLERS | QUERY_POOLERS)[kind]
    torch.manual_seed(0)
    return randomise(build(dim).double()).to(device)


def pool_by_oracle(pool, tokens):
    if isinstance(pool, mg.heads.AttentionPool):
        return oracle.attention_pool(tokens, pool.score.weight[0].tolist())
    return oracle.mean_pool([oracle.normalise(t) for t in tokens] if pool.normalize else tokens)


def pool_for_query_by_oracle(pool, query, tokens):
    if isinstance(pool, mg.grains.SoftmaxPool):
        return oracle.softmax_pool(query, tokens, pool.temperature)
    layers, norms = (
        {name: (layer.weight.tolist(), layer.bias.tolist()) for name, layer in named.items()}
        for named in (
            {name: getattr(pool, name) for name in ("query", "key", "value", "output", "linear")},
            {name: getattr(pool, f"norm_{name}") for name in ("input", "attended", "output")},
        )
    )
    return oracle.cross_attention_pool(query, tokens, layers, norms, pool.heads)


@every_pooler
@given(pairs())
def test_property_pooling_equals_oracle(kind, device, pair):
    pool = pooler(kind, pair.dim, device)
    expected = []
    for tokens, mask in items(pair.video["frame"]):
        real = [tokens[i] for i in oracle.real(mask)]
        expected.append(pool_by_oracle(pool, real) if real else [0.0] * pair.dim)
    pooled = mg.heads.Pool("frame", "all", pool)(pair.to(device).video)["all"]
    close(pooled.features, torch.tensor(expected, dtype=torch.float64))
    if pair.video["frame"].mask is not None:
        assert torch.equal(pooled.mask.cpu()[:, 0], pair.video["frame"].mask.any(1))


@every_query_pooler
@settings(max_examples=15)
@given(pairs())
def test_property_query_pooling_equals_oracle(kind, device, pair):
    pair = even(pair, kind)
    pool = pooler(kind, pair.dim, device)
    sentences = pair.text["sentence"].features.tolist()
    expected = torch.zeros(len(pair.text), len(pair.video), dtype=torch.float64)
    for c, (tokens, mask) in enumerate(items(pair.video["frame"])):
        real = [tokens[i] for i in oracle.real(mask)]
        for q, query in enumerate(sentences):
            if real:
                vector = pool_for_query_by_oracle(pool, query, real)
                expected[q, c] = oracle.dot(oracle.normalise(query), oracle.normalise(vector))
    grain = mg.grains.PooledGrain("sentence", "frame", pool)
    for backend in ("eager", "blocked", "auto"):
        # A vector that nearly vanishes has a direction that rounding decides: layer norms of two channels.
        close(grain(*pair.to(device), backend), expected, 1e-6 if "softmax" not in kind else 1e-9)


def outcome(kind, pair, device):
    """Scores or vectors, and all gradients."""
    pool = pooler(kind, pair.dim, device)
    text, video = leaves(pair.text), leaves(pair.video)
    if kind in POOLERS:
        out = mg.heads.Pool("frame", "all", pool)(video)["all"].features
    else:
        out = mg.grains.PooledGrain("sentence", "frame", pool)(text, video)
    (out**2).sum().backward()
    return [out.detach(), *gradients(text, video), *(p.grad for p in pool.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", [*POOLERS, *QUERY_POOLERS])
@settings(max_examples=15)
@given(pairs(masks=("prefix", "holes", "empty")), st.sampled_from(POISONS))
def test_property_poison_behind_a_mask_reaches_no_pooled_vector(kind, device, pair, poison):
    pair = even(pair, kind)
    dirty = type(pair)(pair.text, poisoned(pair.video, poison), pair.dim)
    for clean, other in zip(
        outcome(kind, pair.to(device), device), outcome(kind, dirty.to(device), device), strict=True
    ):
        assert clean.isfinite().all()
        close(other, clean, 1e-12)


@pytest.mark.parametrize("kind", [*POOLERS, *QUERY_POOLERS])
@given(pairs(masks=("none",)), st.integers(1, 3), st.randoms(use_true_random=False))
def test_property_neither_padding_nor_order_changes_a_pooled_vector(kind, device, pair, more, random):
    pair = even(pair, kind).to(device)
    frames = pair.video["frame"].features
    order = random.sample(range(frames.shape[1]), frames.shape[1])
    padded = torch.nn.functional.pad(frames[:, order], (0, 0, 0, more), value=9.0)
    mask = torch.arange(padded.shape[1], device=device).expand(len(frames), -1) < frames.shape[1]
    other = type(pair)(pair.text, mg.Features(video=pair.video["video"], frame=(padded, mask)), pair.dim)
    close(outcome(kind, other, device)[0], outcome(kind, pair, device)[0], 1e-9)


@every_query_pooler
@given(pairs(masks=("empty",)))
def test_property_an_item_without_a_real_frame_scores_zero_and_moves_nothing(kind, device, pair):
    pair = even(pair, kind).to(device)
    text, video = leaves(pair.text), leaves(pair.video)
    scores = mg.grains.PooledGrain("sentence", "frame", pooler(kind, pair.dim, device))(text, video)
    scores.sum().backward()
    dead = ~video["frame"].mask.any(1)
    assert dead.any()
    assert not scores[:, dead].any()
    assert not video["frame"].features.grad[dead].any()
    assert all(x.isfinite().all() for x in gradients(text, video))


@every_query_pooler
def test_a_pooled_grain_passes_gradcheck(kind, device):
    """Through features and parameters, with padding and an item that has nothing else."""
    generator = torch.Generator().manual_seed(0)
    query, frames = (torch.randn(*shape, generator=generator).double().to(device) for shape in ((2, 4), (3, 3, 4)))
    mask = torch.tensor([[True, True, False], [False, True, True], [False] * 3], device=device)
    pool = pooler(kind, 4, device)

    def score(query, candidate, *_):
        grain = mg.grains.PooledGrain("sentence", "frame", pool)
        return grain(mg.Features(sentence=query), mg.Features(frame=(candidate, mask)), "blocked")

    inputs = (query.requires_grad_(), frames.requires_grad_(), *pool.parameters())
    assert torch.autograd.gradcheck(score, inputs, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*POOLERS, *QUERY_POOLERS])
def test_half_tokens_are_pooled_in_fp32_and_autocast_changes_nothing(kind, half, device):
    generator = torch.Generator().manual_seed(0)
    text = mg.Features(sentence=torch.randn(3, 8, generator=generator)).to(device, half)
    video = mg.Features(frame=torch.randn(4, 5, 8, generator=generator)).to(device, half)
    pool = randomise((POOLERS | QUERY_POOLERS)[kind](8)).to(device)

    def vectors(text, video):
        if kind in POOLERS:
            return mg.heads.Pool("frame", "all", pool)(video)["all"].features
        return mg.grains.PooledGrain("sentence", "frame", pool)(text, video)

    out = vectors(text, video)
    assert out.dtype == torch.float32
    close(out, vectors(text.to(dtype=torch.float32), video.to(dtype=torch.float32)), 0.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(vectors(text, video), out, 0.0)


@every_query_pooler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 6e3])
def test_extreme_tokens_have_finite_scores_and_gradients(kind, dtype, scale, device):
    generator = torch.Generator().manual_seed(0)
    pool = QUERY_POOLERS[kind](8).to(device)
    x, y = (scale * torch.randn(*shape, generator=generator) for shape in ((3, 8), (4, 5, 8)))
    x[0], y[0], y[1, 1:] = 0.0, 0.0, 0.0
    query, frame = (t.to(device, dtype).requires_grad_() for t in (x, y))
    scores = mg.grains.PooledGrain("sentence", "frame", pool)(mg.Features(sentence=query), mg.Features(frame=frame))
    scores.sum().backward()
    assert scores.isfinite().all()
    # 1 / length of a gradient by short tokens leaves the range of fp16, of which a loss scale takes care.
    assert query.grad.float().isfinite().all() or dtype == torch.float16
    assert frame.grad.float().isfinite().all() or dtype == torch.float16


@given(pairs())
def test_property_softmax_pool_tends_to_the_mean_and_to_the_best(device, pair):
    """In the limits it is the mean frame, un-normalised, and the frame of the highest cosine."""
    sentence, frame = pair.text["sentence"].features, pair.video["frame"]
    q, tokens = sentence.to(device), frame.to(device).filled()
    mask = None if frame.mask is None else (frame.mask | ~frame.mask.any(1, keepdim=True)).to(device)
    hot, cold = (mg.grains.SoftmaxPool(t)(q, tokens, mask) for t in (1e9, 1e-9))
    close(hot, mg.heads.MeanPool()(tokens, mask).expand_as(hot), 1e-6)
    cosines = torch.nn.functional.cosine_similarity(q[:, None, None], tokens[None], dim=-1)
    best = (cosines if mask is None else cosines.masked_fill(~mask, -2.0)).argmax(-1)
    close(cold, tokens[torch.arange(len(tokens), device=device), best], 1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@given(pairs())
def test_property_aosm_of_sentence_and_frames_is_hitchhiker_s_scores_mode(temperature, device, pair):
    """sum_n softmax(cos / t)_n cos_n; its other mode takes the cosine after the sum."""
    pair = pair.to(device)
    grain = mg.Grain("sentence", "frame", mg.AOSM(temperature, direction="candidate"))
    for row, (tokens, mask) in enumerate(items(pair.video["frame"])):
        real = [tokens[i] for i in oracle.real(mask)]
        for q, query in enumerate(pair.text["sentence"].features.tolist()):
            cosines = [oracle.dot(oracle.normalise(query), oracle.normalise(t)) for t in real]
            expected = oracle.dot(oracle.softmax(cosines, temperature), cosines) if real else 0.0
            assert float(grain(*pair)[q, row]) == pytest.approx(expected, abs=1e-10)


@every_query_pooler
@given(pairs(tokens=1, masks=("none",)))
def test_property_of_one_frame_softmax_pool_is_its_cosine(kind, device, pair):
    if "softmax" in kind:
        frames = mg.Features(frame=pair.video["frame"].features)
        grain = mg.grains.PooledGrain("sentence", "frame", pooler(kind, pair.dim, device))
        close(grain(pair.to(device).text, frames.to(device)), mg.Grain("sentence", "frame")(pair.text, frames))


def test_cross_attention_begins_as_identities():
    pool = mg.grains.CrossAttentionPool(6, heads=2)
    for layer in (pool.query, pool.key, pool.value, pool.output, pool.linear):
        assert torch.equal(layer.weight, torch.eye(6))
        assert not layer.bias.any()
    query, tokens = torch.randn(2, 6), torch.randn(3, 4, 6)
    norm = torch.nn.functional.layer_norm
    one_head = mg.grains.CrossAttentionPool(6)(query, tokens)
    q, x = norm(query, [6]), norm(tokens, [6])
    attention = (torch.einsum("qd,cnd->qcn", q, x) / 6**0.5).softmax(-1)
    out = norm(torch.einsum("qcn,cnd->qcd", attention, x), [6])
    close(one_head, norm(out + out, [6]), 1e-5)


def test_dropout_is_that_of_training_alone_and_the_same_in_the_backward_pass():
    torch.manual_seed(0)
    grain = mg.grains.PooledGrain("sentence", "frame", mg.grains.CrossAttentionPool(8, dropout=0.5))
    text, video = mg.Features(sentence=torch.randn(3, 8)), mg.Features(frame=torch.randn(4, 5, 8))
    assert not torch.equal(grain(text, video), grain(text, video))
    found = []
    for backend in ("eager", "blocked"):
        torch.manual_seed(1)
        leaf = text["sentence"].features.clone().requires_grad_()
        grain(mg.Features(sentence=leaf), video, backend).sum().backward()
        found.append(leaf.grad)
    close(*found, 1e-6)
    grain.eval()
    close(grain(text, video), grain(text, video), 0.0)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@every_query_pooler
def test_no_tensor_is_larger_than_a_few_blocks(kind, monkeypatch):
    """Neither [q, c, n, D] nor [q, c, D] is ever whole, in either pass."""
    monkeypatch.setattr(recompute, "ELEMENTS", 4096)
    text = mg.Features(sentence=torch.randn(60, 8, requires_grad=True))
    video = mg.Features(frame=(torch.randn(50, 6, 8, requires_grad=True), torch.rand(50, 6) < 0.8))
    grain = mg.grains.PooledGrain("sentence", "frame", QUERY_POOLERS[kind](8))
    largest = Largest()
    with largest:
        grain(text, video, "blocked").sum().backward()
    assert largest.elements <= 3 * 4096 < 60 * 50 * 8


def test_a_head_adds_one_grain():
    class Shifted(mg.heads.AttentionPool):
        def forward(self, tokens, mask=None):
            return 1 + super().forward(tokens, mask)

    mask = torch.tensor([[True, True, False], [False, False, False]])
    features = mg.Features(frame=(torch.randn(2, 3, 4), mask))
    more = mg.heads.Pool("frame", "video", Shifted(4))(features)
    assert more.names == ("frame", "video")
    assert more["video"].mask.tolist() == [[True], [False]]
    assert not more["video"].features[1].any()
    scores = mg.Grain("sentence", "video")(mg.Features(sentence=torch.randn(5, 4)), more)
    assert not scores[:, 1].any()
    assert scores[:, 0].all()


def test_the_mean_of_clip4clip_is_that_of_unit_frames():
    frames, sentence = torch.randn(4, 5, 8), torch.randn(3, 8)
    unit = torch.nn.functional.normalize
    video = mg.heads.Pool("frame", "video", mg.heads.MeanPool(normalize=True))(mg.Features(frame=frames))
    expected = unit(sentence, dim=-1) @ unit(unit(frames, dim=-1).mean(1), dim=-1).T
    close(mg.VideoSentence()(mg.Features(sentence=sentence), video), expected, 1e-6)


def test_a_pooled_grain_works_beside_others():
    scorer = mg.MultiGrain(
        mg.VideoSentence(),
        mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool()),
        weights="learned",
        strict=True,
    )
    text = mg.Features(sentence=torch.randn(6, 8), unused=torch.randn(6, 2))
    video = mg.Features(video=torch.randn(6, 8), frame=torch.randn(6, 5, 8))
    assert list(scorer.scores_by_grain(text, video)) == ["sentence-video", "sentence-frame"]
    scores = scorer(text, video)
    close(mg.score_matrix(scorer, text, video, block=4), scores, 1e-6)
    loss = mg.RetrievalLoss(scorer, mg.InfoNCE())(text, video)
    loss.backward()
    assert scorer.weight_logits.grad.abs().max() > 0
    assert scorer.grains[1].similarity(text, video).shape == (6, 6, 1, 5)


def test_what_cannot_be_pooled_is_said():
    text = mg.Features(sentence=torch.randn(2, 4), word=torch.randn(2, 3, 4))
    video = mg.Features(frame=torch.randn(5, 2, 4))
    with pytest.raises(TypeError, match="pooler: expected a Pooler, got SoftmaxPool"):
        mg.heads.Pool("frame", "video", mg.grains.SoftmaxPool())
    with pytest.raises(TypeError, match="pooler: expected a QueryPooler, got MeanPool"):
        mg.grains.PooledGrain("sentence", "frame", mg.heads.MeanPool())
    with pytest.raises(ValueError, match="target: expected features without 'frame', which is made of"):
        mg.heads.Pool("frame", "frame", mg.heads.MeanPool())(video)
    with pytest.raises(KeyError, match="no grain 'patch'"):
        mg.heads.Pool("patch", "video", mg.heads.MeanPool())(video)
    with pytest.raises(ValueError, match="grain 'word-frame': expected one query token, got 3"):
        mg.grains.PooledGrain("word", "frame", mg.grains.SoftmaxPool())(text, video)
    with pytest.raises(ValueError, match="AttentionPool: expected features of width 8, got 4"):
        mg.heads.Pool("frame", "video", mg.heads.AttentionPool(8))(video)
    with pytest.raises(ValueError, match="CrossAttentionPool: expected features of width 8, got 4"):
        mg.grains.PooledGrain("sentence", "frame", mg.grains.CrossAttentionPool(8))(text, video)
    with pytest.raises(ValueError, match=r"heads: expected a divisor of dim \(8\), got 3"):
        mg.grains.CrossAttentionPool(8, heads=3)
    with pytest.raises(ValueError, match="temperature: expected a positive finite number, got 0"):
        mg.grains.SoftmaxPool(0)
    with pytest.raises(Unsupported, match="triton serves two-level aggregators"):
        mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool())(text, video, "triton")


def test_a_user_s_own_poolers_work_like_the_others():
    class First(mg.grains.QueryPooler):
        def forward(self, query, tokens, mask=None):
            return tokens[:, 0].expand(len(query), -1, -1)

    frames, text = torch.randn(5, 2, 4), mg.Features(sentence=torch.randn(3, 4))
    scores = mg.grains.PooledGrain("sentence", "frame", First())(text, mg.Features(frame=frames))
    close(scores, mg.Grain("sentence", "first")(text, mg.Features(first=frames[:, 0])), 1e-6)


@given(st.data())
def test_property_pooled_scores_of_a_sub_batch_are_the_batch_s_own(device, data):
    query, frames = numbers(data.draw, 4, 6).to(device), numbers(data.draw, 5, 3, 6).to(device)
    grain = mg.grains.PooledGrain("sentence", "frame", pooler("cross-attention", 6, device))
    whole = grain(mg.Features(sentence=query), mg.Features(frame=frames))
    q, c = (data.draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=4)) for k in (4, 5))
    close(grain(mg.Features(sentence=query[q]), mg.Features(frame=frames[c])), whole[q][:, c], 1e-9)
