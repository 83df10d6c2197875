"""Grains: similarity of two named grains, bilinear weights, and every aggregator behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multigrain as mg
from tests.strategies import (
    CASES,
    POISONS,
    Case,
    Pair,
    close,
    gradients,
    judge_grain,
    leaves,
    map_grains,
    numbers,
    pairs,
    poisoned,
    randomise,
)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
PRESETS = {
    "sentence-video": (mg.VideoSentence, None),
    "word-video": (mg.VideoWord, Case("aosm")),
    "sentence-frame": (mg.SentenceFrame, Case("aosm")),
    "word-frame": (mg.FrameWord, Case("aosm")),
}
every_preset = pytest.mark.parametrize("preset", PRESETS)


def built(preset: str, pair: Pair, device: torch.device) -> mg.Grain:
    """A preset in fp64 with a bilinear weight that is not the identity."""
    return randomise(PRESETS[preset][0](bilinear=pair.dim).double()).to(device)


def outcome(grain: mg.Grain, pair: Pair) -> list[torch.Tensor]:
    """Scores, and the gradients of their sum by every feature that the grain reads and every parameter."""
    text, video = leaves(pair.text), leaves(pair.video)
    grain.zero_grad()
    scores = grain(text, video)
    scores.sum().backward()
    return [scores.detach(), *gradients(text, video), *(p.grad.clone() for p in grain.parameters())]


@every_preset
@given(pairs())
def test_property_preset_equals_oracle(preset, device, pair):
    grain = built(preset, pair, device)
    assert grain.name == preset
    close(grain(*pair.to(device)), judge_grain(grain, pair, PRESETS[preset][1]))
    plain = PRESETS[preset][0]().to(device)
    close(plain(*pair.to(device)), judge_grain(plain, pair, PRESETS[preset][1]))


@every_case
@given(pairs())
def test_property_grain_with_any_aggregator_equals_oracle(case, device, pair):
    grain = randomise(mg.Grain("word", "frame", case.build(), bilinear=pair.dim).double()).to(device)
    close(grain(*pair.to(device)), judge_grain(grain, pair, case))


@given(pairs())
def test_property_similarity_is_the_cosine_of_every_token_pair_and_zero_at_pads(device, pair):
    """As read by a mean over one token pair, so that the oracle judges it too."""
    sim = mg.FrameWord().similarity(*pair.to(device))
    words, frames = pair.text["word"], pair.video["frame"]
    for m in range(words.length):
        for n in range(frames.length):
            word, frame = (
                mg.Tokens(t.features[:, k : k + 1], None if t.mask is None else t.mask[:, k : k + 1])
                for t, k in ((words, m), (frames, n))
            )
            one = Pair(mg.Features(word=word), mg.Features(frame=frame), pair.dim)
            close(sim[:, :, m, n], judge_grain(mg.FrameWord("mean_mean"), one, Case("mean_mean")))


@given(pairs(masks=("none",)))
def test_property_grain_of_vectors_is_their_cosine(device, pair):
    sentence, video = pair.text["sentence"].features, pair.video["video"].features
    expected = torch.nn.functional.cosine_similarity(sentence[:, None], video[None], dim=-1)
    for aggregator in (None, *(case.build() for case in CASES)):
        close(mg.VideoSentence(aggregator)(*pair.to(device)), expected, 1e-12)


@every_preset
@given(pairs())
def test_property_identity_bilinear_is_no_bilinear(preset, device, pair):
    build, pair = PRESETS[preset][0], pair.to(device)
    close(build(bilinear=pair.dim).to(device)(*pair), build()(*pair), 1e-12)


@every_case
@given(pairs(masks=("prefix", "holes", "empty")), st.sampled_from(POISONS))
def test_property_poisoned_padding_changes_neither_scores_nor_gradients(case, device, pair, poison):
    grain = randomise(mg.Grain("word", "frame", case.build(), bilinear=pair.dim).double()).to(device)
    dirty = Pair(poisoned(pair.text, poison), poisoned(pair.video, poison), pair.dim)
    for clean, poisoned_too in zip(outcome(grain, pair.to(device)), outcome(grain, dirty.to(device)), strict=True):
        assert clean.isfinite().all()
        close(poisoned_too, clean, 1e-12)


@every_case
@given(pairs(masks=("empty",)))
def test_property_an_empty_item_scores_zero_and_moves_nothing(case, device, pair):
    pair = pair.to(device)
    scores, *moved = outcome(mg.Grain("word", "frame", case.build()), pair)
    dead_text, dead_video = ~pair.text["word"].mask.any(1), ~pair.video["frame"].mask.any(1)
    assert not scores[dead_text].any()
    assert not scores[:, dead_video].any()
    assert not moved[0][dead_text].any()
    assert not moved[1][dead_video].any()
    assert all(x.isfinite().all() for x in (scores, *moved))


@every_case
@given(pairs(masks=("none", "full")), st.sampled_from(POISONS[:3]), st.data())
def test_property_a_bad_real_token_makes_nan_of_its_item_s_scores_alone(case, device, pair, poison, data):
    grain, clean = mg.Grain("word", "frame", case.build()), pair.to(device)
    row = data.draw(st.integers(0, len(pair.text) - 1))
    token = data.draw(st.integers(0, pair.text["word"].length - 1))
    words = clean.text["word"].features.clone()
    words[row, token, 0] = poison
    scores = grain(mg.Features(word=(words, clean.text["word"].mask)), clean.video)
    assert scores[row].isnan().all()
    others = [i for i in range(len(scores)) if i != row]
    close(scores[others], grain(*clean)[others], 1e-12)


@every_preset
@given(pairs(), st.data())
def test_property_positive_scaling_of_any_token_changes_nothing(preset, device, pair, data):
    def stretch(tokens: mg.Tokens) -> mg.Tokens:
        factors = numbers(data.draw, *tokens.features.shape[:-1], 1).exp()
        return mg.Tokens(tokens.features * factors, tokens.mask)

    stretched = Pair(map_grains(pair.text, stretch), map_grains(pair.video, stretch), pair.dim)
    grain = built(preset, pair, device)
    close(grain(*stretched.to(device)), grain(*pair.to(device)), 1e-11)


@every_preset
@settings(max_examples=4)
@given(pairs(items=2, tokens=3))
def test_property_grain_passes_gradcheck_on_features_and_bilinear(preset, device, pair):
    grain, pair = built(preset, pair, device), pair.to(device)
    words, frames = pair.text[grain.query], pair.video[grain.candidate]

    def score(query, candidate, _):
        text = mg.Features(**{grain.query: mg.Tokens(query, words.mask)})
        return grain(text, mg.Features(**{grain.candidate: mg.Tokens(candidate, frames.mask)}))

    # Unit length first: central differences on vectors of length 0.1 or 30 measure their own step.
    inputs = (torch.nn.functional.normalize(t.features, dim=-1).requires_grad_() for t in (words, frames))
    assert torch.autograd.gradcheck(score, (*inputs, grain.bilinear))


@every_case
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(pairs(), st.booleans())
def test_property_half_features_score_in_fp32_and_autocast_changes_nothing(case, half, device, pair, bilinear):
    grain = mg.Grain("word", "frame", case.build(), bilinear=pair.dim if bilinear else None)
    grain, rounded = randomise(grain).float().to(device), pair.to(device, half)
    scores, exact = grain(*rounded), grain(*pair.to(device))
    assert scores.dtype == torch.float32
    close(scores, grain(*rounded.to(device, torch.float32)), 1e-5)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(grain(*rounded), scores, 1e-6)
        close(grain(*pair.to(device)), exact, 1e-12)


@every_case
@pytest.mark.parametrize("other", [torch.float32, torch.float64])
@given(pairs())
def test_property_sides_of_two_dtypes_score_in_the_wider(case, other, device, pair):
    text, video = pair.text.to(device, torch.bfloat16), pair.video.to(device, other)
    grain = mg.Grain("word", "frame", case.build())
    scores = grain(text, video)
    assert scores.dtype == other
    # At temperature 0.01 the last bits of a fp32 similarity count a hundredfold.
    close(scores, grain(text.to(dtype=other), video), 1e-4)


@every_case
@given(pairs())
def test_property_an_aggregator_by_name_is_the_aggregator(case, device, pair):
    default = mg.Grain("word", "frame", case.name).to(device)
    instance = mg.Grain("word", "frame", mg.aggregators.build_aggregator(case.name))
    assert type(default.aggregator) is type(instance.aggregator)
    close(default(*pair.to(device)), instance(*pair.to(device)), 0.0)


class FirstToken(mg.Aggregator):
    """A user's own aggregator: no direction, no care for masks, and no zero for empty items."""

    def forward(self, sim, query_mask=None, candidate_mask=None):
        return 1 + sim[:, :, 0].amax(-1)


def test_a_registered_aggregator_of_the_user_s_own_works_like_the_others():
    from multigrain.aggregators import base

    try:
        again = type("FirstToken", (FirstToken,), {"__module__": FirstToken.__module__})  # a cell that runs again
        for cls in (again, FirstToken):
            assert mg.register_aggregator("first_token")(cls) is cls
        assert isinstance(mg.aggregators.build_aggregator("first_token"), FirstToken)
        text = mg.Features(word=(torch.randn(3, 4, 8), torch.tensor([[True] * 4, [True] * 4, [False] * 4])))
        video = mg.Features(frame=torch.randn(5, 2, 8))
        scorer = mg.MultiGrain(mg.Grain("word", "frame", "first_token"))
        scores = scorer(text, video)
        assert scores.shape == (3, 5)
        assert not scores[2].any()
        close(mg.score_matrix(scorer, text, video, block=2), scores, 1e-6)
    finally:
        base._REGISTRY.pop("first_token", None)
