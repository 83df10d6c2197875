"""FILIP, ColBERT, X-CLIP, Video-ColBERT, DRL, UCoFiA, TS2-Net: token against token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import multigrain as mg
from multigrain import recipes
from tests.recipes.features import DIM, raw
from tests.strategies import close, leaves, randomise


def cosine(text: mg.Features, video: mg.Features, i: int, j: int, frame: str = "frame") -> Tensor:
    """[real words, real frames] of one pair."""
    w, f = text["word"], video[frame]
    words = w.features[i] if w.mask is None else w.features[i][w.mask[i]]
    frames = f.features[j] if f.mask is None else f.features[j][f.mask[j]]
    return F.normalize(words, dim=-1) @ F.normalize(frames, dim=-1).T


def pairwise(text: mg.Features, video: mg.Features, score) -> Tensor:
    return torch.stack(
        [torch.stack([score(cosine(text, video, i, j)) for j in range(len(video))]) for i in range(len(text))]
    )


E = torch.eye(3, dtype=torch.float64)


def test_filip_by_hand() -> None:
    """Image tokens [e1, e1, e2], text token [e1]: 2/3 from the image, 1 from the text."""
    recipe = recipes.filip()
    text, video = mg.Features(word=E[None, :1]), mg.Features(frame=E[None, [0, 0, 1]])
    close(recipe.scores(text, video, "v2t"), torch.full((1, 1), 2 / 3, dtype=torch.float64))
    close(recipe.scores(text, video), torch.ones(1, 1, dtype=torch.float64))
    padded = mg.Features(word=(torch.cat([E[None, :1], 9 * E[None, 1:]], 1), torch.tensor([[True, False, False]])))
    close(recipe.scores(padded, video, "v2t"), recipe.scores(text, video, "v2t"))
    close(recipe.scores(padded, video), recipe.scores(text, video))


def test_filip_has_one_matrix_for_each_direction() -> None:
    recipe, (text, video) = recipes.filip(), raw(dtype=torch.float64)
    t2v, v2t = (pairwise(text, video, lambda x, d=d: x.amax(d).mean()) for d in (1, 0))
    close(recipe.scores(text, video), t2v)
    close(recipe.scores(text, video, "v2t"), v2t)
    diagonal = torch.arange(4)
    expected = (F.cross_entropy(t2v / 0.07, diagonal) + F.cross_entropy(v2t.T / 0.07, diagonal)) / 2
    close(recipe(text, video), expected, 1e-6)
    assert len(list(recipe.parameters())) == 1  # one scale for both


def test_filip_with_one_token_is_clip() -> None:
    (text, video), filip, clip = raw(), recipes.filip(), recipes.clip()
    text = mg.Features(word=text["sentence"].features, sentence=text["sentence"].features)
    video = mg.Features(frame=video["frame"].features[:, :1])
    close(filip.scores(text, video), clip.scores(text, video), 1e-6)
    close(filip(text, video), clip(text, video), 1e-6)


def test_filip_shares_the_target_among_the_captions_of_a_video() -> None:
    recipe, (text, video) = recipes.filip(), raw(dtype=torch.float64)
    ids = torch.tensor([0, 1, 0, 2])
    t2v, v2t = recipe.scores(text, video), recipe.scores(text, video, "v2t")
    target = F.normalize((ids[:, None] == ids).double(), p=1, dim=1)
    rows, columns = (F.cross_entropy(x / 0.07, target) for x in (t2v, v2t.T))
    close(recipe(text, video, ids), (rows + columns) / 2, 1e-6)


def test_colbert_sums_over_words_and_is_trained_one_way() -> None:
    recipe, (text, video) = recipes.colbert(), raw(dtype=torch.float64)
    scores = pairwise(text, video, lambda x: x.amax(1).sum())
    close(recipe.scores(text, video), scores)
    close(recipe(text, video), F.cross_entropy(scores, torch.arange(4)), 1e-6)


def test_x_clip_s_grains_are_averaged_and_can_be_left_out() -> None:
    recipe, (text, video) = recipes.xclip(DIM, max_frames=4, depth=1, heads=2), raw()
    by_grain = recipe.scorer.scores_by_grain(*recipe.encode(text, video))
    assert list(by_grain) == list(recipes.late.XCLIP_GRAINS)
    close(recipe.scores(text, video), sum(by_grain.values()) / 4, 1e-6)
    fewer = recipes.xclip(DIM, "mean", grains=["sentence-frame", "word-frame"])
    close(fewer.scores(text, video), (by_grain["sentence-frame"] + by_grain["word-frame"]) / 2, 1e-6)
    with pytest.raises(ValueError, match="word-patch"):
        recipes.xclip(DIM, grains=["word-patch"])


def test_x_clip_s_identity_matrices_change_nothing() -> None:
    (text, video), plain = raw(), recipes.xclip(DIM, "mean", 4)
    mixing = recipes.xclip(DIM, "mean", 4, max_words=5)
    assert len(list(mixing.scorer.parameters())) == 8
    close(mixing.scores(text, video), plain.scores(text, video), 1e-6)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_filip_keeps_the_share_that_matches_best(share: float) -> None:
    (text, video), some = raw(dtype=torch.float64), recipes.filip(share)

    def best(x: Tensor) -> Tensor:
        return x.amax(1).topk(math.ceil(share * len(x))).values.mean()

    close(some.scores(text, video), pairwise(text, video, best))
    if share == 1:
        close(some.scores(text, video, "v2t"), recipes.filip().scores(text, video, "v2t"))


def test_video_colbert_is_two_sigmoid_losses_over_frames_and_context() -> None:
    recipe, (text, video) = recipes.video_colbert(DIM, 4, 1, 2, context_weight=0.5), raw(dtype=torch.float64)
    recipe.double()
    encoded = recipe.encode(text, video)[1]
    frame, context = (pairwise(text, encoded, lambda x: x.amax(1).mean()) for encoded in (encoded, _as_frame(encoded)))
    close(recipe.scores(text, video), frame + context)
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    # As SigLIP: a sum over the candidates of each query. The paper's mean over all pairs is 1 / B of it.
    terms = [-F.logsigmoid(signs * (10 * x - 10)).sum() / 4 for x in (frame, context)]
    close(recipe(text, video), terms[0] + 0.5 * terms[1], 1e-6)
    biases = [p for n, p in recipe.named_parameters() if n.endswith("logit_bias")]
    assert len(biases) == 2 and biases[0] is not biases[1]


def _as_frame(video: mg.Features) -> mg.Features:
    return mg.Features(frame=video["context"])


def test_video_colbert_s_sigmoid_is_siglip_s() -> None:
    loss = pytest.importorskip("open_clip.loss")
    text, video = raw(6, dtype=torch.float64)
    s, v = (F.normalize(x, dim=-1) for x in (text["sentence"].features, video["frame"].features[:, 0]))
    criterion = recipes.video_colbert(DIM, 4, 1, 2).loss.summands()[0].loss.criterion
    expected = loss.SigLipLoss()(v, s, criterion.logit_scale.exp(), criterion.logit_bias)
    close(criterion(s @ v.T), expected, 1e-6)


def test_drl_with_uniform_weights_is_token_interaction() -> None:
    recipe, (text, video) = recipes.drl(DIM), raw(dtype=torch.float64)
    recipe.double()
    for mlp in recipe.scorer.grains[0].aggregator.mlps.values():
        torch.nn.init.zeros_(mlp[-1].weight)
    close(recipe.scores(text, video), pairwise(text, video, lambda x: (x.amax(1).mean() + x.amax(0).mean()) / 2))


def test_drl_weighs_tokens_by_its_mlp_and_adds_decorrelation() -> None:
    recipe, (text, video) = recipes.drl(DIM), raw(dtype=torch.float64)
    randomise(recipe.double())
    mlps, expected = recipe.scorer.grains[0].aggregator.mlps, torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            x = cosine(text, video, i, j)
            w, v = (
                mlps[side](tokens.features[k][tokens.mask[k]]).squeeze(-1).softmax(0)
                for side, tokens, k in (("query", text["word"], i), ("candidate", video["frame"], j))
            )
            expected[i, j] = (w @ x.amax(1) + v @ x.amax(0)) / 2
    close(recipe.scores(text, video), expected)
    loss, terms = recipe(text, video), recipe.loss.terms
    assert set(terms) == {"contrast", "decorrelation"} and terms["decorrelation"] > 0
    close(sum(terms.values()), loss)


def test_drl_s_weights_learn_from_its_decorrelation_where_they_weigh_it() -> None:
    text, video = raw()
    for weighted in (False, True):
        recipe = recipes.drl(DIM, weighted=weighted)
        decorrelation = recipe.loss.summands()[1].loss
        decorrelation(leaves(text), video).backward()
        mlps = recipe.scorer.grains[0].aggregator.mlps
        assert all((p.grad is not None) == weighted for p in mlps.parameters())
        assert len(list(recipe.parameters())) == len(list(recipes.drl(DIM).parameters()))


def test_drl_s_padding_does_not_beat_negative_similarities() -> None:
    """The original multiplies by the mask before the maximum, so that a pad's 0 wins over real -1s."""
    recipe = recipes.drl(DIM)
    one = torch.eye(DIM)[:1, None]
    frames = torch.cat([-one, one], 1), torch.tensor([[True, False]])
    close(recipe.scores(mg.Features(word=one), mg.Features(frame=frames)), torch.tensor([[-1.0]]), 1e-6)


def test_ucofia_is_the_mean_of_three_grains() -> None:
    recipe, (text, video) = recipes.ucofia(DIM, "mean"), raw(dtype=torch.float64)
    found = recipe.scorer.scores_by_grain(*recipe.encode(text, video))
    assert list(found) == ["sentence-video", "sentence-frame", "word-patch"]
    close(recipe.scores(text, video), sum(found.values()) / 3)

    def isa(x: Tensor, dim: int) -> Tensor:
        p = ((x / 0.01).softmax(dim) / 0.01).softmax(dim)
        return (p * x).sum(dim)

    close(found["word-patch"], pairwise(text, video, lambda x: (isa(isa(x, 1), 0) + isa(isa(x, 0), 0)) / 2))
    patches = mg.Features(frame=video["frame"], patch=torch.randn(4, 9, DIM, dtype=torch.float64))
    plain, learned = (
        recipes.ucofia(DIM, "mean", 4, patch="patch", **settings)
        for settings in ({}, {"max_words": 5, "max_patches": 9})
    )
    close(learned.scores(text, patches), plain.scores(text, patches), 1e-9)  # the matrices begin as identities
    assert [p.shape[0] for p in learned.scorer.parameters()] == [DIM, 4, 5, 5, 9, 9]


def test_ts2net_blends_weighted_frames_with_the_whole() -> None:
    recipe, (text, video) = recipes.ts2net(DIM, 0.3, "mean"), raw(dtype=torch.float64)
    sentences = mg.Features(word=text["sentence"].features[:, None])

    def weighted(x: Tensor) -> Tensor:
        return ((4 * x / x.norm()).softmax(1) * x).sum()

    whole = recipes.clip().scores(text, video)
    close(recipe.scores(text, video), 0.3 * pairwise(sentences, video, weighted) + 0.7 * whole)


@pytest.mark.parametrize("temporal", ["mean", "transformer"])
def test_x_clip_is_the_model_above_its_towers(temporal: str) -> None:
    models = pytest.importorskip("multigrain.models")
    own_recipe = pytest.importorskip("multigrain.models.recipe").own_recipe
    recipe, (text, video) = randomise(recipes.xclip(DIM, temporal, 4, 1, 2, max_words=5)), raw()
    encoder = None if temporal == "mean" else recipe.video_head[0].encoder
    tower = models.FeatureTower(DIM)
    own = own_recipe(recipe.scorer, encoder, recipe.loss.criterion)
    model = models.XCLIP(tower, tower, own, recipe.loss.criterion)
    encoded = model.encode_video(video["frame"].features, video["frame"].mask)
    close(recipe.scores(text, video), model.scorer(text, encoded), 0.0)
    close(recipe(text, video), mg.RetrievalLoss(model.scorer, model.criterion)(text, encoded), 0.0)
