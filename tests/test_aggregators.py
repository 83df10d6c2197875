"""Every registered aggregator in every direction, judged by the oracle and by what a score must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multigrain as mg
from multigrain.aggregators import aggregator_names
from tests import oracle
from tests.strategies import CASES, DIRECTIONS, POISONS, Case, Sims, close, items, leaves, pairs, randomise, sims

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
TEMPERED = {
    "aosm": (0.01, 0.1, 1.0),
    "isa": (0.1, 1.0),
    "logsumexp": (0.1, 1.0),
    "normalized_softmax": (0.25, 1.0),
}
EXTREME = {torch.float16: 6e4, torch.bfloat16: 1e6, torch.float32: 1e6}


def test_every_registered_aggregator_is_judged():
    assert set(aggregator_names()) == set(oracle.AGGREGATORS) == {case.name for case in CASES}


@every_case
@given(sims(), st.data())
def test_property_aggregator_equals_oracle(case, device, problem, data):
    settings = {"temperature": data.draw(st.sampled_from(TEMPERED[case.name]))} if case.name in TEMPERED else {}
    close(case.build(**settings)(*problem.to(device)), case.judge(*problem, **settings))


@every_case
@given(sims(), st.sampled_from(POISONS))
def test_property_masked_similarities_reach_neither_score_nor_gradient(case, device, problem, poison):
    problem = problem.to(device)
    results = []
    for filling in (0.0, poison):
        leaf = problem.sim.masked_fill(~problem.real, filling).requires_grad_()
        scores = case.build()(leaf, problem.query_mask, problem.candidate_mask)
        scores.sum().backward()
        results.append((scores.detach(), leaf.grad))
    close(results[1][0], results[0][0], 0.0)
    close(results[1][1], results[0][1], 0.0)
    assert not results[1][1][~problem.real].any()


@every_case
@given(sims(masks=("prefix", "holes", "empty")), st.integers(1, 3), st.integers(0, 3))
def test_property_appended_padding_changes_nothing(case, device, problem, more_query, more_candidate):
    problem = problem.to(device)
    widths = (0, more_candidate, 0, more_query)
    padded = Sims(
        torch.nn.functional.pad(problem.sim, widths, value=0.9),  # higher than most: it must not win a max
        torch.nn.functional.pad(problem.query_mask, (0, more_query)),
        torch.nn.functional.pad(problem.candidate_mask, (0, more_candidate)),
    )
    close(case.build()(*padded), case.build()(*problem), 1e-14)


@every_case
@given(sims(), st.randoms(use_true_random=False))
def test_property_token_order_changes_nothing(case, device, problem, random):
    problem = problem.to(device)
    m, n = (torch.tensor(random.sample(range(k), k), device=device) for k in problem.sim.shape[2:])
    shuffled = Sims(
        problem.sim[:, :, m][..., n],
        None if problem.query_mask is None else problem.query_mask[:, m],
        None if problem.candidate_mask is None else problem.candidate_mask[:, n],
    )
    close(case.build()(*shuffled), case.build()(*problem), 1e-13)


@every_case
@given(sims(), st.data())
def test_property_scores_of_any_sub_batch_are_the_batch_s_own(case, device, problem, data):
    """Reordering, dropping and repeating items reorders, drops and repeats scores, and changes none."""
    problem = problem.to(device)
    q, c = (
        torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=4)), device=device)
        for k in problem.sim.shape[:2]
    )
    part = Sims(
        problem.sim[q][:, c],
        None if problem.query_mask is None else problem.query_mask[q],
        None if problem.candidate_mask is None else problem.candidate_mask[c],
    )
    close(case.build()(*part), case.build()(*problem)[q][:, c], 1e-14)


@every_case
@given(sims(masks=("none",)))
def test_property_no_mask_means_all_real(case, device, problem):
    q, c, m, n = problem.sim.shape
    full = Sims(problem.sim, torch.ones(q, m, dtype=torch.bool), torch.ones(c, n, dtype=torch.bool))
    close(case.build()(*full.to(device)), case.build()(*problem.to(device)), 1e-14)


@every_case
@given(sims(masks=("empty",)))
def test_property_an_item_without_a_real_token_scores_zero_with_zero_gradient(case, device, problem):
    problem = problem.to(device)
    leaf = problem.sim.requires_grad_()
    scores = case.build()(leaf, problem.query_mask, problem.candidate_mask)
    scores.sum().backward()
    empty = ~problem.real.flatten(2).any(2)
    assert empty.any()
    assert not scores[empty].any()
    assert not leaf.grad[empty].any()
    assert leaf.grad.isfinite().all()


@every_case
@given(sims(tokens=1, masks=("none",)))
def test_property_a_single_token_pair_is_its_own_score(case, device, problem):
    close(case.build()(*problem.to(device)), problem.sim[:, :, 0, 0], 1e-14)


@every_case
@given(sims(masks=("prefix", "holes")), st.floats(-1.0, 1.0))
def test_property_constant_similarities_return_themselves(case, device, problem, value):
    """MaxSim adds one per outer token, LogSumExp t log of the number of pairs; the rest return the constant."""
    m, n = problem.query_mask.sum(1).double()[:, None], problem.candidate_mask.sum(1).double()[None]
    expected = torch.full((len(m), n.shape[1]), value, dtype=torch.float64)
    if case.name == "max_sim":
        expected = expected * {"query": m, "candidate": n, "both": (m + n) / 2}[case.options["direction"]]
    if case.name == "logsumexp":
        expected = expected + 0.1 * (m * n).log()
    constant = Sims(torch.full_like(problem.sim, value), problem.query_mask, problem.candidate_mask)
    close(case.build()(*constant.to(device)), expected, 1e-13)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
@given(sims())
def test_property_the_candidate_direction_is_the_query_direction_seen_from_the_other_side(name, device, problem):
    problem = problem.to(device)
    mirrored = Sims(problem.sim.permute(1, 0, 3, 2), problem.candidate_mask, problem.query_mask)
    query, candidate, both = (Case(name, {"direction": d}).build() for d in DIRECTIONS)
    close(candidate(*problem), query(*mirrored).T, 1e-13)
    close(both(*problem), (query(*problem) + candidate(*problem)) / 2, 1e-13)


@every_case
@settings(max_examples=3)
@given(sims(masks=("none", "holes", "empty"), ties=False, tokens=3))
def test_property_aggregator_passes_gradcheck(case, device, problem):
    problem = problem.to(device)
    aggregator = case.build()
    assert torch.autograd.gradcheck(
        lambda sim: aggregator(sim, problem.query_mask, problem.candidate_mask), problem.sim.requires_grad_()
    )


@every_case
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(sims())
def test_property_half_similarities_score_in_fp32(case, half, device, problem):
    problem = problem.to(device)
    rounded = problem.sim.to(half)
    scores = case.build()(rounded, problem.query_mask, problem.candidate_mask)
    assert scores.dtype == torch.float32
    close(scores, case.build()(rounded.float(), problem.query_mask, problem.candidate_mask), 0.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(case.build()(rounded, problem.query_mask, problem.candidate_mask), scores, 0.0)


@every_direction
@given(sims())
def test_property_aosm_tends_to_mean_mean_and_to_max_max(direction, device, problem):
    problem = problem.to(device)
    hot, cold = (mg.AOSM(temperature=t, direction=direction) for t in (1e9, 1e-9))
    close(hot(*problem), mg.MeanMean()(*problem), 1e-7)
    close(cold(*problem), mg.MaxMax()(*problem), 1e-7)


@pytest.mark.parametrize("name", ["mean_mean", "max_max", "logsumexp"])
@given(sims())
def test_property_order_free_aggregators_have_one_value_in_every_direction(name, device, problem):
    query, candidate, both = (
        mg.aggregators.build_aggregator(name, direction=d)(*problem.to(device)) for d in DIRECTIONS
    )
    close(query, candidate, 1e-13)
    close(query, both, 1e-13)


@every_case
@pytest.mark.parametrize("dtype", EXTREME)
@pytest.mark.parametrize("scale", [1e-6, 1.0, "largest"])
def test_property_extreme_similarities_have_finite_scores_and_gradients(case, dtype, scale, device):
    """At any temperature, for similarities that are all large, all tiny, or all zero but one."""
    generator = torch.Generator().manual_seed(0)
    sim = torch.randn(3, 4, 5, 4, generator=generator).clamp(-1, 1) * (EXTREME[dtype] if scale == "largest" else scale)
    sim[0], sim[1, :, 1:] = 0.0, 0.0
    masks = [(torch.rand(n, k, generator=generator) < 0.6).to(device) for n, k in ((3, 5), (4, 4))]
    for temperature in (1e-4, 1.0, 1e4) if case.name in TEMPERED else (None,):
        settings = {} if temperature is None else {"temperature": temperature}
        leaf = sim.to(device, dtype).requires_grad_()
        scores = case.build(**settings)(leaf, *masks)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        assert scores.isfinite().all()
        assert gradient.float().isfinite().all()


@every_direction
@settings(max_examples=15)
@given(sims(), st.data())
def test_property_mixed_isa_equals_oracle(direction, device, problem, data):
    m, n = problem.sim.shape[2:]
    sides = data.draw(st.sampled_from(["both", "query", "candidate"]))
    sizes = {"both": (m + 1, n), "query": (m + 1, None), "candidate": (None, n + 1)}[sides]
    if sides == "query":
        problem = Sims(problem.sim[..., :1], problem.query_mask, None)
    if sides == "candidate":
        problem = Sims(problem.sim[:, :, :1], None, problem.candidate_mask)
    aggregator = randomise(mg.aggregators.ISA(0.3, direction, *sizes).double())
    case = Case("isa", {"direction": direction, "temperature": 0.3})
    matrices = {name: w.tolist() for name, w in aggregator.named_parameters()}
    close(aggregator.to(device)(*problem.to(device)), case.judge(*problem, **matrices))


def test_isa_says_how_many_tokens_it_mixes():
    with pytest.raises(ValueError, match=r"at most 2 query tokens .the size of ISA's mixing matrix.*, got 3"):
        mg.aggregators.ISA(query_tokens=2, candidate_tokens=9)(torch.zeros(1, 1, 3, 4))


@every_direction
@given(sims())
def test_property_isa_of_identical_matrices_is_isa(direction, device, problem):
    m, n = problem.sim.shape[2:]
    mixed = mg.aggregators.ISA(0.1, direction, m, n).double().to(device)
    close(mixed(*problem.to(device)), mg.aggregators.ISA(0.1, direction)(*problem.to(device)), 1e-13)


@every_direction
@given(sims())
def test_property_top_k_of_all_is_mean_max_and_of_one_is_max_max(direction, device, problem):
    problem = problem.to(device)
    for all_of_them in (
        mg.aggregators.TopK(5, direction=direction),
        mg.aggregators.TopK(share=1.0, direction=direction),
    ):
        close(all_of_them(*problem), mg.MeanMax(direction)(*problem), 1e-13)
    close(mg.aggregators.TopK(1, direction=direction)(*problem), mg.MaxMax()(*problem), 1e-13)


@every_direction
@given(sims(), st.integers(1, 5))
def test_property_fewer_tokens_score_higher(direction, device, problem, k):
    fewer, more = (mg.aggregators.TopK(n, direction=direction)(*problem.to(device)) for n in (k, k + 1))
    assert (fewer >= more - 1e-14).all()
    close(fewer, Case("top_k", {"direction": direction}).judge(*problem, k=k))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k: expected an integer from 1, got 0"),
        ({"share": 1.5}, "share: expected at most 1, got 1.5"),
        ({"share": 0.0}, "share: expected a positive finite number, got 0.0"),
        ({"k": 2, "share": 0.5}, "share: expected none beside k, got 0.5"),
    ],
)
def test_top_k_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        mg.aggregators.TopK(**settings)


@given(sims(tokens=4))
def test_property_log_sum_exp_lies_above_the_maximum_by_at_most_its_entropy(device, problem):
    scores, highest = (x(*problem.to(device)) for x in (mg.LogSumExp(0.1), mg.MaxMax()))
    pairs_of_tokens = problem.real.flatten(2).sum(2).clamp_min(1).to(device)
    assert (scores >= highest - 1e-13).all()
    assert (scores <= highest + 0.1 * pairs_of_tokens.log() + 1e-13).all()


@given(sims(), st.floats(0.1, 10.0))
def test_property_normalized_softmax_weighs_alike_at_any_scale(device, problem, scale):
    problem = problem.to(device)
    scaled = Sims(scale * problem.sim, problem.query_mask, problem.candidate_mask)
    close(
        mg.aggregators.NormalizedSoftmax(direction="query")(*scaled),
        scale * mg.aggregators.NormalizedSoftmax(direction="query")(*problem),
    )


def judge_weighted(aggregator, text, video):
    """Scores by the oracle, the weights of each item's real tokens by the oracle too."""

    def weights(side, features, name, tokens, real):
        if side in aggregator.mlps:
            first, _, last = aggregator.mlps[side]
            layers = [(layer.weight.tolist(), layer.bias.tolist()) for layer in (first, last)]
            return oracle.learned_weights([tokens[i] for i in real], *layers)
        given = features["weight"].features[..., 0].tolist()[name]
        return oracle.given_weights([given[i] for i in real])

    def score(q, c):
        (words, word_mask), (frames, frame_mask) = texts[q], videos[c]
        rows, columns = oracle.real(word_mask), oracle.real(frame_mask)
        if not rows or not columns:
            return 0.0
        more = {
            "query_weights": weights("query", text, q, words, rows) if "query" in weighed else None,
            "candidate_weights": weights("candidate", video, c, frames, columns) if "candidate" in weighed else None,
        }
        sim = oracle.similarity([words[i] for i in rows], [frames[j] for j in columns])
        return oracle.token_weighted(sim, aggregator.direction, **more)

    weighed = [side for side in ("query", "candidate") if aggregator.weighs(side)]
    texts, videos = items(text["word"]), items(video["frame"])
    return torch.tensor([[score(q, c) for c in range(len(videos))] for q in range(len(texts))], dtype=torch.float64)


WEIGHTED = {
    "learned": lambda dim, direction: mg.TokenWeighted(dim, direction=direction),
    "given": lambda dim, direction: mg.TokenWeighted(
        query_weights="weight", candidate_weights="weight", direction=direction
    ),
    "mixed": lambda dim, direction: mg.TokenWeighted(dim, candidate_weights="weight", direction=direction),
}


def with_weights(features, generator):
    """The features and weights of their tokens, some of them zero or negative."""
    grains = {name: features[name] for name in features.names}
    tokens = next(t for t in grains.values() if t.features.ndim == 3)
    w = torch.randn(*tokens.features.shape[:2], 1, generator=generator, dtype=torch.float64)
    return mg.Features(**grains, weight=torch.where(w < -0.8, 0.0, w))


@every_direction
@pytest.mark.parametrize("kind", WEIGHTED)
@settings(max_examples=15)
@given(pairs(), st.integers(0, 100))
def test_property_token_weighted_grain_equals_oracle(kind, direction, device, pair, seed):
    generator = torch.Generator().manual_seed(seed)
    text, video = (with_weights(side, generator) for side in pair)
    aggregator = randomise(WEIGHTED[kind](pair.dim, direction).double())
    expected = judge_weighted(aggregator, text, video)
    grain = mg.Grain("word", "frame", aggregator).to(device)
    for backend in ("eager", "blocked"):
        close(grain(text.to(device), video.to(device), backend), expected)


@pytest.mark.parametrize("kind", WEIGHTED)
@given(pairs(), st.sampled_from(POISONS))
def test_property_token_weights_equal_oracle(kind, device, pair, poison):
    """They add up to 1 over the real tokens, and nothing behind a mask reaches them or their gradient."""
    text = with_weights(pair.text, torch.Generator().manual_seed(0))
    text = mg.Features(word=text["word"], weight=text["weight"].features.abs() + 0.1)
    aggregator = randomise(WEIGHTED[kind](pair.dim, "query").double()).to(device)
    outcomes = []
    for filling in (0.0, poison):
        mask = text["word"].mask
        grains = {name: text[name].features for name in text.names}
        if mask is not None:
            grains = {name: x.masked_fill(~mask[..., None], filling) for name, x in grains.items()}
        given = leaves(mg.Features(word=(grains["word"], mask), weight=grains["weight"]).to(device))
        weights = aggregator.weigh("query", given, "word")
        parts = [given[name].features for name in ("word", "weight")]
        gradients = torch.autograd.grad((weights**2).sum(), parts, allow_unused=True, materialize_grads=True)
        outcomes.append([weights.detach(), *gradients])
        real = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask.to(device)
        close(weights.sum(1), real.any(1).double(), 1e-12)
        assert not weights[~real].any()
    for clean, dirty in zip(*outcomes, strict=True):
        close(dirty, clean, 0.0)
    assert aggregator.weigh("candidate", given, "word") is None


@every_direction
@pytest.mark.parametrize("backend", ["eager", "blocked"])
@given(pairs())
def test_property_uniform_weights_are_token_interaction(direction, backend, device, pair):
    """None given, equal ones given, or an MLP that says the same of every token."""
    text, video = (with_weights(side, torch.Generator()) for side in pair.to(device))
    text, video = (
        mg.Features(**{n: f[n] for n in f.names if n != "weight"}, weight=torch.full_like(f["weight"].features, 3.0))
        for f in (text, video)
    )
    flat = mg.TokenWeighted(pair.dim, direction=direction).double().to(device)
    for mlp in flat.mlps.values():
        torch.nn.init.zeros_(mlp[2].weight)
    given = mg.TokenWeighted(None, "weight", "weight", direction)
    expected = mg.Grain("word", "frame", mg.MeanMax(direction))(text, video, "eager")
    for aggregator in (mg.TokenWeighted(direction=direction), flat, given):
        close(mg.Grain("word", "frame", aggregator)(text, video, backend), expected, 1e-13)


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_gradients_reach_the_mlp_and_only_where_it_is_used(backend, device):
    generator = torch.Generator().manual_seed(0)
    text = mg.Features(word=torch.randn(4, 5, 8, generator=generator)).to(device)
    video = mg.Features(frame=torch.randn(4, 3, 8, generator=generator)).to(device)
    for direction, sides in (("both", {"query", "candidate"}), ("query", {"query"}), ("candidate", {"candidate"})):
        grain = mg.Grain("word", "frame", mg.TokenWeighted(8, direction=direction)).to(device)
        assert {name.split(".")[2] for name, _ in grain.named_parameters()} == sides
        (grain(text, video, backend) ** 2).sum().backward()
        assert all(p.grad.abs().max() > 0 for name, p in grain.named_parameters() if not name.endswith("2.bias"))


def test_weights_of_zero_score_zero_without_nan():
    text = mg.Features(word=torch.randn(2, 3, 4, requires_grad=True), weight=torch.zeros(2, 3, 1, requires_grad=True))
    grain = mg.Grain("word", "frame", mg.TokenWeighted(query_weights="weight", direction="query"))
    scores = grain(text, mg.Features(frame=torch.randn(5, 2, 4)))
    scores.sum().backward()
    assert not scores.any()
    assert all(text[name].features.grad.isfinite().all() for name in text.names)


def test_token_weighted_says_what_does_not_fit():
    text, video = (
        mg.Features(word=torch.randn(2, 3, 4), idf=torch.rand(2, 2, 1)),
        mg.Features(frame=torch.randn(5, 2, 4)),
    )
    with pytest.raises(ValueError, match=r"idf: expected one weight for each of the 3 tokens of 'word', \[B, 3, 1\]"):
        mg.Grain("word", "frame", mg.TokenWeighted(query_weights="idf"))(text, video)
    with pytest.raises(ValueError, match="TokenWeighted of 'word': expected features of width 8, got 4"):
        mg.Grain("word", "frame", mg.TokenWeighted(8))(text, video)
    with pytest.raises(KeyError, match="no grain 'tf'"):
        mg.Grain("word", "frame", mg.TokenWeighted(query_weights="tf"))(text, video)


def test_a_loss_carries_given_weights_along():
    """Only the grains that a scorer reads travel between ranks; weights are among them."""
    from multigrain.losses.batch import select_read

    scorer = mg.MultiGrain(mg.Grain("word", "frame", mg.TokenWeighted(query_weights="idf")))
    text = mg.Features(word=torch.randn(2, 3, 4), idf=torch.rand(2, 3, 1), other=torch.randn(2, 4))
    kept, _ = select_read(scorer.reads, text, mg.Features(frame=torch.randn(2, 2, 4)))
    assert kept.names == ("word", "idf")
    assert mg.RetrievalLoss(scorer, mg.InfoNCE())(text, mg.Features(frame=torch.randn(2, 2, 4))).isfinite()
