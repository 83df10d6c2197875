"""MultiGrain: four grains in one score, their weights, and everything a pair's score must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multigrain as mg
from tests import oracle
from tests.strategies import POISONS, Case, Pair, close, gradients, judge_grain, leaves, pairs, poisoned, randomise

MIXING = {"query_tokens": 5, "candidate_tokens": 5}


def four_grains(pair: Pair, device: torch.device, mixed: bool = True, **settings) -> mg.MultiGrain:
    """All of X-CLIP with every learned matrix off the identity (`mixed`), or its four parameter-free grains."""
    if mixed:
        grains = (
            mg.VideoSentence(bilinear=pair.dim),
            mg.VideoWord(mg.AOSM(0.1, query_tokens=5)),
            mg.SentenceFrame(mg.AOSM(0.1, candidate_tokens=5)),
            mg.FrameWord(mg.AOSM(0.1, **MIXING), bilinear=pair.dim),
        )
    else:
        grains = (mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame("max_mean"), mg.FrameWord("mean_max"))
    return randomise(mg.MultiGrain(*grains, **settings).double()).to(device)


def judged(scorer: mg.MultiGrain, pair: Pair, weights: list[float] | None = None) -> torch.Tensor:
    """Scores of `four_grains(mixed=True)` by the oracle."""
    tables = []
    for grain in scorer.grains:
        case = None if grain.aggregator is None else Case("aosm", {"temperature": 0.1})
        matrices = {} if case is None else {k: v.tolist() for k, v in grain.aggregator.named_parameters()}
        tables.append(judge_grain(grain, pair, case, **matrices))
    stacked = torch.stack(tables, -1).tolist()
    return torch.tensor([[oracle.multi_grain(s, weights) for s in row] for row in stacked], dtype=torch.float64)


@given(pairs())
def test_property_four_grains_equal_oracle(device, pair):
    scorer = four_grains(pair, device)
    close(scorer(*pair.to(device)), judged(scorer, pair))


@given(pairs(), st.lists(st.floats(-1, 2), min_size=4, max_size=4))
def test_property_fixed_weights_equal_oracle(device, pair, weights):
    scorer = four_grains(pair, device, weights=weights)
    close(scorer(*pair.to(device)), judged(scorer, pair, weights))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@given(pairs())
def test_property_mean_is_the_mean_of_the_scores_by_grain(count, device, pair):
    scorer = mg.MultiGrain(*four_grains(pair, device, mixed=False).grains[:count])
    by_grain = scorer.scores_by_grain(*pair.to(device))
    assert list(by_grain) == ["sentence-video", "word-video", "sentence-frame", "word-frame"][:count]
    close(scorer(*pair.to(device)), torch.stack(list(by_grain.values())).mean(0), 1e-12)


@given(pairs())
def test_property_learned_weights_start_at_the_mean_and_learn(device, pair):
    learned = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord(), weights="learned").double().to(device)
    mean = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord())
    scores = learned(*pair.to(device))
    close(scores, mean(*pair.to(device)), 1e-12)
    (weight,) = learned.parameters()
    scores.square().sum().backward()
    assert weight.grad.isfinite().all()
    assert weight.grad.any() or not scores.any() or _equal_grains(learned, pair)


def _equal_grains(scorer: mg.MultiGrain, pair: Pair) -> bool:
    """The gradient by the weights is rightly zero where the grains agree."""
    first, second = scorer.scores_by_grain(*pair.to(scorer.weights.device)).values()
    return torch.allclose(first, second)


@pytest.mark.parametrize("mixed", [False, True])
@given(pairs(masks=("prefix", "holes", "empty")), st.sampled_from(POISONS))
def test_property_poisoned_padding_changes_nothing_in_the_whole_scorer(mixed, device, pair, poison):
    scorer = four_grains(pair, device, mixed)
    dirty = Pair(poisoned(pair.text, poison), poisoned(pair.video, poison), pair.dim)
    results = []
    for features in (pair.to(device), dirty.to(device)):
        text, video = leaves(features.text), leaves(features.video)
        scorer.zero_grad()
        scores = scorer(text, video)
        scores.square().sum().backward()
        results.append([scores, *gradients(text, video), *(p.grad.clone() for p in scorer.parameters())])
    for clean, poisoned_too in zip(*results, strict=True):
        assert clean.isfinite().all()
        close(poisoned_too, clean, 1e-12)


@pytest.mark.parametrize("mixed", [False, True])
@given(pairs(), st.data())
def test_property_a_pair_s_score_does_not_depend_on_its_batch(mixed, device, pair, data):
    pair, scorer = pair.to(device), four_grains(pair, device, mixed)
    rows = [data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=4)) for x in pair]
    part = scorer(pair.text[rows[0]], pair.video[rows[1]])
    close(part, scorer(*pair)[rows[0]][:, rows[1]], 1e-12)


@given(pairs(masks=("none", "holes")), st.sampled_from(POISONS[:3]))
def test_property_a_bad_item_spoils_its_own_scores_and_no_others(device, pair, poison):
    """NaN and infinity at a real token make NaN of every score of their item, never a plausible number."""
    pair, scorer = pair.to(device), four_grains(pair, device)
    bad = mg.Features(**{n: mg.Tokens(pair.text[n].features[:1].clone(), None) for n in pair.text.names})
    bad["word"].features[0, 0] = poison
    scores = scorer(mg.Features.cat([pair.text, bad]), pair.video)
    close(scores[:-1], scorer(*pair), 1e-12)
    assert scores[-1].isnan().all()


@given(pairs(masks=("empty",)))
def test_property_empty_items_leave_the_other_grains_their_say(device, pair):
    scorer = four_grains(pair, device, mixed=False)
    by_grain = scorer.scores_by_grain(*pair.to(device))
    dead = ~pair.text["word"].mask.any(1)
    assert not by_grain["word-video"][dead].any()
    assert not by_grain["word-frame"][dead].any()
    assert all(scores.isfinite().all() for scores in by_grain.values())
    assert by_grain["sentence-video"].any()


@settings(max_examples=3)
@given(pairs(items=2, tokens=2))
def test_property_scorer_passes_gradcheck_on_features_and_parameters(device, pair):
    scorer, pair = four_grains(pair, device, weights="learned"), pair.to(device)
    tokens = [f[name] for f in pair for name in f.names]

    def score(sentence, word, video, frame, *_):
        text = mg.Features(sentence=sentence, word=(word, tokens[1].mask))
        return scorer(text, mg.Features(video=video, frame=(frame, tokens[3].mask)))

    inputs = [torch.nn.functional.normalize(t.features, dim=-1).requires_grad_() for t in tokens]
    assert torch.autograd.gradcheck(score, (*inputs, *scorer.parameters()))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(pairs())
def test_property_scorer_widens_half_features_and_ignores_autocast(half, device, pair):
    scorer, rounded = four_grains(pair, device, weights="learned").float(), pair.to(device, half)
    scores = scorer(*rounded)
    assert scores.dtype == torch.float32
    close(scores, scorer(*rounded.to(device, torch.float32)), 1e-5)
    with torch.autocast(device.type, dtype=half if device.type == "cuda" else torch.bfloat16):
        close(scorer(*rounded), scores, 1e-6)


@given(pairs())
def test_property_strict_scores_good_features_alike(device, pair):
    full = Pair(pair.text[:], pair.video[:], pair.dim).to(device)
    strict, lenient = (four_grains(pair, device, strict=strict) for strict in (True, False))
    empty = any(t.mask is not None and not t.mask.any(1).all() for t in (full.text["word"], full.video["frame"]))
    if empty:
        with pytest.raises(ValueError, match="expected a real token in every item"):
            strict(*full)
    else:
        close(strict(*full), lenient(*full), 0.0)
