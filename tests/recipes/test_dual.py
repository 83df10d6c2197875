"""CLIP, ALIGN, Frozen in Time, WenLan, CLIP4Clip: their losses by hand, and against other packages."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import multigrain as mg
from multigrain import recipes
from tests.recipes.features import DIM, raw
from tests.strategies import close, randomise


def cosines(recipe: recipes.Recipe, text: mg.Features, video: mg.Features) -> Tensor:
    """[texts, videos] of the recipe's sentence and video vectors, in plain torch."""
    text, video = recipe.encode(text, video)
    s, v = (F.normalize(x.tokenwise().features[:, 0], dim=-1) for x in (text["sentence"], video["video"]))
    return s @ v.T


def both_ways(logits: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    diagonal = torch.arange(len(logits))
    rows, columns = (F.cross_entropy(x, diagonal, label_smoothing=label_smoothing) for x in (logits, logits.T))
    return rows, columns


def test_clip_is_two_cross_entropies_halved() -> None:
    recipe, (text, video) = recipes.clip(), raw()
    rows, columns = both_ways(cosines(recipe, text, video) / 0.07)
    close(recipe(text, video), (rows + columns) / 2, 1e-6)


def test_clip_s_scale_stops_at_100() -> None:
    recipe, (text, video) = recipes.clip(), raw()
    with torch.no_grad():
        recipe.loss.criterion.logit_scale.fill_(math.log(1000))
    rows, columns = both_ways(cosines(recipe, text, video) * 100)
    close(recipe(text, video), (rows + columns) / 2, 1e-4)
    assert recipe.loss.criterion.logit_scale.exp() <= 100.001


def test_clip_equals_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    recipe, (text, video) = recipes.clip(), raw(6, dtype=torch.float64)
    s, v = (
        F.normalize(x, dim=-1) for x in (text["sentence"].features, recipe.encode(text, video)[1]["video"].features)
    )
    expected = open_clip.ClipLoss()(v.flatten(0, -2), s, recipe.loss.criterion.logit_scale.exp())
    close(recipe(text, video), expected, 1e-6)


def test_clip_equals_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    recipe, (text, video) = recipes.clip(), raw(6, dtype=torch.float64)
    s, v = text["sentence"].features, recipe.encode(text, video)[1]["video"].features.flatten(0, -2)
    criterion = losses.NTXentLoss(temperature=0.07)  # a labels object passed twice would mean one set of items
    pairs = ({"embeddings": a, "ref_emb": b} for a, b in ((s, v), (v, s)))
    expected = sum(criterion(**pair, labels=torch.arange(6), ref_labels=torch.arange(6)) for pair in pairs) / 2
    close(recipe(text, video), expected, 1e-6)


def test_align_is_the_sum_of_smoothed_cross_entropies() -> None:
    recipe, (text, video) = recipes.align(), raw()
    close(recipe(text, video), sum(both_ways(cosines(recipe, text, video), 0.1)), 1e-6)


def test_frozen_in_time_is_twice_clip_at_scale_20() -> None:
    recipe, (text, video) = recipes.frozen_in_time(), raw()
    close(recipe(text, video), sum(both_ways(cosines(recipe, text, video) / 0.05)), 1e-5)
    clip = recipes.clip()
    with torch.no_grad():
        clip.loss.criterion.logit_scale.fill_(math.log(20))
    close(recipe(text, video), 2 * clip(text, video), 1e-5)
    assert [p for p in recipe.parameters() if p.requires_grad] == []


def test_wenlan_is_cross_entropy_over_a_key_and_the_queue() -> None:
    """One pair at a time it is the original's CE(cat[q k+, q Queue] / 0.07, 0), summed over directions."""
    recipe = recipes.wenlan(queue_size=3)
    (text, video), (text_key, video_key), old = (
        recipe.encode(*raw(n, seed=seed)) for n, seed in ((1, 0), (1, 1), (5, 2))
    )
    queues = recipe.queues()
    assert queues is not None
    for queue, side in zip(queues, old, strict=True):
        queue.push(mg.Features(**{n: side[n] for n in side.names if n in ("sentence", "video")}))
    got = recipe(*raw(1), keys=(text_key, video_key), text_queue=queues[0], video_queue=queues[1])

    def unit(features: mg.Features, name: str) -> Tensor:
        return F.normalize(features[name].tokenwise().features[:, 0], dim=-1)

    sides = (("sentence", text, "video", video_key, old[1]), ("video", video, "sentence", text_key, old[0]))
    expected = torch.zeros(())
    for name, query, other, key, queued in sides:
        candidates = torch.cat([unit(key, other), unit(queued, other)[-3:]])
        expected = expected + F.cross_entropy(unit(query, name) @ candidates.T / 0.07, torch.zeros(1, dtype=torch.long))
    close(got, expected, 1e-5)


def test_wenlan_s_keys_get_no_gradient() -> None:
    recipe, (text, video) = recipes.wenlan(), raw()
    keys = tuple(
        mg.Features(**{name: side[name].features.clone().requires_grad_()})
        for side, name in zip(recipe.encode(*raw(seed=1)), ("sentence", "video"), strict=True)
    )
    online = mg.Features(frame=video["frame"].features.clone().requires_grad_())
    recipe(text, online, keys=keys).backward()
    assert online["frame"].features.grad is not None
    assert [key[name].features.grad for key, name in zip(keys, ("sentence", "video"), strict=True)] == [None, None]


def test_clip4clip_s_mean_is_of_unit_real_frames() -> None:
    recipe, (text, video) = recipes.clip4clip(DIM), raw(dtype=torch.float64)
    expected = []
    for frames, mask in zip(video["frame"].features, video["frame"].mask, strict=True):
        real = frames[mask]
        expected.append((real / real.norm(dim=1, keepdim=True)).mean(0))
    s, v = (F.normalize(x, dim=-1) for x in (text["sentence"].features, torch.stack(expected)))
    close(recipe.scores(text, video), s @ v.T)


@pytest.mark.parametrize("temporal", ["mean", "lstm", "transformer"])
def test_clip4clip_is_x_clip_with_one_grain_and_identity_matrices(temporal: str) -> None:
    theirs = recipes.clip4clip(DIM, temporal, max_frames=4, depth=1, heads=2)
    ours = recipes.xclip(DIM, temporal, 4, 1, 2, grains=["sentence-video"], max_words=5)
    randomise(theirs.video_head)
    ours.video_head = copy.deepcopy(theirs.video_head)
    text, video = raw()
    close(ours.scores(text, video), theirs.scores(text, video), 1e-7)
    close(ours(text, video), theirs(text, video), 1e-6)


def test_clip4clip_s_tight_similarity_is_a_transformer_over_sentence_and_frames() -> None:
    recipe, (text, video) = recipes.clip4clip(DIM, "tight", depth=1, heads=2), raw()
    scores = recipe.scorer(mg.Features(sentence=text["sentence"]), video)
    close(recipe.scores(text, video), scores)
    rows, columns = both_ways(scores)
    close(recipe(text, video), (rows + columns) / 2, 1e-6)
    with pytest.raises(ValueError, match="temporal: expected one of mean, lstm, transformer, tight; got 'loose'"):
        recipes.clip4clip(DIM, "loose")
