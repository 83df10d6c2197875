"""HERO, X-Pool, query-scoring."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import multigrain as mg
from multigrain import recipes
from tests.recipes.features import DIM, raw
from tests.strategies import close


def test_hero_by_hand() -> None:
    """S = [[.9, .5], [.85, .9]], margin .1: [0, .05] along the rows, [.05, 0] down the columns."""
    recipe = recipes.hero(DIM, hard_weight=1.0)
    criterion = recipe.loss.criterion
    scores, own = torch.tensor([[0.9, 0.5], [0.85, 0.9]]), torch.eye(2, dtype=torch.bool)
    close(criterion.rows(scores, own), torch.tensor([0, 0.05]), 1e-6)
    close(criterion.rows(scores.T, own), torch.tensor([0.05, 0]), 1e-6)
    close(criterion(scores), torch.tensor(0.05), 1e-6)


def test_hero_s_score_is_that_of_the_best_frame() -> None:
    recipe, (text, video) = recipes.hero(DIM), raw(dtype=torch.float64)
    recipe.double()
    query = F.normalize(recipe.encode(text, video)[0]["query"].tokenwise().features[:, 0], dim=-1)
    frames, mask = video["frame"].normalized().features, video["frame"].mask
    expected = torch.einsum("qd,cnd->qcn", query, frames).masked_fill(~mask[None], -9).amax(2)
    close(recipe.scores(text, video), expected)


def test_x_pool_of_equal_frames_is_the_same_for_every_sentence() -> None:
    """Of one real frame, or equal ones, there is nothing to choose."""
    recipe, (text, video) = recipes.x_pool(DIM), raw()
    one = mg.Features(frame=video["frame"].features[:, :1])
    twice = mg.Features(frame=one["frame"].features.expand(-1, 2, -1))
    close(recipe.scores(text, twice), recipe.scores(text, one), 1e-5)
    same = mg.Features(sentence=text["sentence"].features[:1].expand(4, -1))
    close(recipe.scores(same, one), recipe.scores(same[:1], one).expand(4, -1), 1e-6)


def test_query_scoring_weighs_frames_by_their_cosine() -> None:
    (text, video), feats = raw(dtype=torch.float64), recipes.query_scoring()
    s, frames, mask = text["sentence"].features, video["frame"].features, video["frame"].mask
    cosine = torch.einsum("qd,cnd->qcn", F.normalize(s, dim=-1), F.normalize(frames, dim=-1))
    weights = (cosine / 0.1).masked_fill(~mask[None], -torch.inf).softmax(2)
    pooled = torch.einsum("qcn,cnd->qcd", weights, frames)
    close(feats.scores(text, video), torch.einsum("qd,qcd->qc", F.normalize(s, dim=-1), F.normalize(pooled, dim=-1)))
    close(recipes.query_scoring(pool="scores").scores(text, video), (weights * cosine).sum(2))


def test_query_scoring_tends_to_the_mean_of_frames() -> None:
    """A hot softmax weighs all frames alike: CLIP over the mean of frames as they are."""
    (text, video), hot = raw(dtype=torch.float64), recipes.query_scoring(temperature=1e6)
    unit = mg.Features(frame=video["frame"].normalized())
    close(hot.scores(text, unit), recipes.clip().scores(text, video), 1e-5)
