"""LXMERT, OSCAR, VideoBERT (matching_head), ClipBERT, TACo, ALBEF."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import multigrain as mg
from multigrain import recipes
from tests.recipes.features import DIM, raw
from tests.strategies import close, randomise

SMALL = {"depth": 1, "heads": 2}


def test_matching_head_with_logits_of_zero_loses_ln_2() -> None:
    recipe = recipes.matching_head(DIM, **SMALL)
    torch.nn.init.zeros_(recipe.scorer.head.weight)
    torch.nn.init.zeros_(recipe.scorer.head.bias)
    close(recipe(*raw()), torch.tensor(math.log(2)), 1e-6)


@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (96, 1), (200, 2), (512, 8)])
def test_the_default_number_of_heads_divides_the_width(dim: int, heads: int) -> None:
    (layer,) = recipes.matching_head(dim, depth=1).scorer.transformer.blocks
    assert layer.heads == heads


def test_matching_head_sees_as_many_right_as_wrong_pairs_where_only_texts_are_replaced() -> None:
    seen: dict[str, int] = {}
    for direction in ("candidate", "both"):
        recipe = recipes.matching_head(DIM, direction=direction, **SMALL)
        pairs = recipe.scorer.pairs

        def count(text: mg.Features, video: mg.Features, pairs: Any = pairs, direction: str = direction) -> Any:
            seen[direction] = len(text)
            return pairs(text, video)

        recipe.scorer.pairs = count
        recipe(*raw(4))
    assert seen == {"candidate": 8, "both": 12}


def test_matching_head_orders_by_the_probability_of_a_match() -> None:
    """OSCAR's score is softmax(logits)_1, of which the recipe's is the log-odds."""
    recipe, (text, video) = recipes.matching_head(DIM, **SMALL), raw()
    probability = recipe.scorer.pairs(text, video).softmax(1)[:, 1]
    close(recipe.scores(text, video).diagonal().sigmoid(), probability, 1e-6)


def test_clipbert_s_loss_is_log_sum_exp_of_segments_and_classes_less_that_of_the_label() -> None:
    recipe, (text, video) = recipes.clipbert(DIM, **SMALL), raw(3)
    video = mg.Features(frame=video["frame"].features)
    cross = recipe.scorer.scorer
    segments = torch.stack([cross(text, mg.Features(frame=video["frame"].features[:, i : i + 2])) for i in (0, 2)], 2)
    by_text, by_video = segments.logsumexp((1, 2)), segments.logsumexp((0, 2))
    label = segments.diagonal().logsumexp(0)
    close(recipe(text, video), ((by_text - label).mean() + (by_video - label).mean()) / 2, 1e-5)


@pytest.mark.parametrize("frames", [2, 4])
def test_clipbert_s_pools_are_in_order(frames: int) -> None:
    """LSE - log C <= max <= LSE for C segments, and mean <= max; with one segment all are equal."""
    by_pool, (text, video) = {}, raw()
    video = mg.Features(frame=video["frame"].features[:, :frames])
    for pool in ("lse", "max", "mean"):
        torch.manual_seed(0)
        recipe = recipes.clipbert(DIM, pool=pool, **SMALL)
        by_pool[pool] = recipe.scores(text, video)
    lse, best, mean = by_pool["lse"], by_pool["max"], by_pool["mean"]
    eps = 1e-5
    assert ((lse - math.log(frames / 2) <= best + eps) & (best <= lse + eps) & (mean <= best + eps)).all()
    if frames == 2:
        close(lse, best, 1e-5)
        close(mean, best, 1e-5)


def test_clipbert_ignores_a_padded_segment() -> None:
    recipe, (text, video) = recipes.clipbert(DIM, **SMALL), raw()
    frames = video["frame"].features
    longer = torch.cat([frames, torch.full((4, 2, DIM), float("nan"))], 1)
    mask = torch.arange(6).expand(4, 6) < 4
    close(recipe.scores(text, mg.Features(frame=(longer, mask))), recipe.scores(text, mg.Features(frame=frames)), 1e-6)


def test_clipbert_s_log_sum_exp_asks_for_cross_entropy() -> None:
    with pytest.raises(ValueError, match="loss: expected one of ce; got 'margin'"):
        recipes.clipbert(DIM, loss="margin")
    assert isinstance(recipes.clipbert(DIM, pool="max", loss="margin", **SMALL).loss.criterion, mg.losses.MarginRanking)


def test_taco_s_terms_and_cascade() -> None:
    recipe, (text, video) = recipes.taco(DIM, **SMALL), raw()
    loss = recipe(text, video)
    terms = recipe.loss.terms
    assert set(terms) == {"global", "token", "fusion"}
    close(sum(terms.values()), loss, 1e-6)
    close(terms["global"], recipes.clip()(text, video), 1e-6)
    text, video = recipe.encode(text, video)
    close(recipe.scorer(text, video), sum(recipe.scorer.scores_by_grain(text, video).values()), 1e-6)


def test_taco_s_token_loss_of_one_word_is_info_nce_of_maxima() -> None:
    """One word has weight 1 in each text: the token term is InfoNCE over its best frames."""
    recipe, (text, video) = recipes.taco(DIM, **SMALL), raw(dtype=torch.float64)
    weight = torch.zeros(4, 5, 1, dtype=torch.float64)
    chosen = torch.tensor([0, 1, 2, 1])
    weight[torch.arange(4), chosen] = 1
    word = text["word"].features.clone().requires_grad_()
    text = mg.Features(sentence=text["sentence"], word=(word, text["word"].mask), word_weight=weight)
    recipe.double()(text, video)
    token = next(term.loss for term in recipe.loss.summands() if term.name == "token")
    loss = token(*recipe.encode(text, video))
    w, f = F.normalize(word[torch.arange(4), chosen], dim=-1), F.normalize(video["frame"].features, dim=-1)
    sim = torch.einsum("qd,cnd->qcn", w, f).masked_fill(~video["frame"].mask[None], -9).amax(2)
    rows, columns = (F.cross_entropy(x / 0.07, torch.arange(4)) for x in (sim, sim.T))
    close(loss, (rows + columns) / 2, 1e-6)
    loss.backward()
    silent = weight[..., 0] == 0
    assert not word.grad[silent].any() and word.grad[~silent].any()


def test_albef_without_keys_or_distillation_is_info_nce_and_matching() -> None:
    recipe, (text, video) = recipes.albef(DIM, alpha=0, **SMALL), raw()
    loss = recipe(text, video)
    close(recipe.loss.terms["contrast"], recipes.clip()(text, video), 1e-6)
    close(sum(recipe.loss.terms.values()), loss, 1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_albef_s_targets_are_distilled_from_keys_and_queues(alpha: float) -> None:
    """alpha softmax(momentum scores) + (1 - alpha) positives, over the batch and the queue; 0 is plain InfoNCE."""
    recipe = recipes.albef(DIM, alpha=alpha, queue_size=3, **SMALL)
    text, video = recipe.encode(*raw())
    keys, old = recipe.encode(*raw(seed=1)), recipe.encode(*raw(3, seed=2))
    queues = recipe.queues()
    assert queues is not None
    queues[0].push(mg.Features(sentence=old[0]["sentence"]))
    queues[1].push(mg.Features(video=old[1]["video"]))
    recipe(*raw(), keys=keys, text_queue=queues[0], video_queue=queues[1])

    def unit(features: mg.Features, name: str) -> torch.Tensor:
        return F.normalize(features[name].tokenwise().features[:, 0], dim=-1)

    expected = torch.zeros(())
    for side, other in ((0, 1), (1, 0)):
        name, another = (("sentence", "video"), ("video", "sentence"))[side]
        candidates = torch.cat([unit(keys[other], another), unit(old[other], another)])
        mine, teacher = unit((text, video)[side], name), unit(keys[side], name)
        target = alpha * (teacher @ candidates.T / 0.07).softmax(1) + (1 - alpha) * torch.eye(4, 7)
        assert torch.allclose(target.sum(1), torch.ones(4))
        expected = expected + F.cross_entropy(mine @ candidates.T / 0.07, target) / 2
    close(recipe.loss.terms["contrast"], expected, 1e-5)


@pytest.mark.parametrize("name", ["albef", "taco"])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_reranking_all_is_the_reranker_s_matrix_and_some_stay_above_the_rest(name: str, direction: str) -> None:
    recipe, (text, video) = recipes.build(name, DIM, rerank_k=6, **SMALL).eval(), raw(6)
    randomise(recipe)
    first = recipe.scores(text, video, direction)
    close(recipe.reranked(text, video, direction), recipe.reranker(*recipe.encode(text, video)), 1e-5)
    recipe.rerank_k = 2
    again = recipe.reranked(text, video, direction)
    recipe.rerank_k = 128  # more than there are: all
    close(recipe.reranked(text, video, direction), recipe.reranked(text, video, direction, k=6), 0.0)
    close(recipe.reranked(text, video, direction, k=2), again, 0.0)
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k: expected an integer from 1 to 6, got {k}"):
            recipe.reranked(text, video, direction, k)
    if direction == "v2t":
        first, again = first.T, again.T
    for before, after in zip(first, again, strict=True):
        before, after = before.argsort(descending=True).tolist(), after.argsort(descending=True).tolist()
        assert set(after[:2]) == set(before[:2]) and after[2:] == before[2:]


def test_taco_s_search_ends_with_the_sum_of_all_three_scores() -> None:
    recipe, (text, video) = recipes.taco(DIM, **SMALL).eval(), raw()
    text, video = recipe.encode(text, video)
    fusion = next(term.loss for term in recipe.loss.summands() if term.name == "fusion").scorer
    parts = [*recipe.scorer.scores_by_grain(text, video).values(), fusion(text, video)]
    assert len(parts) == 3
    close(recipe.reranked(*raw()), sum(parts), 1e-5)


def test_a_recipe_without_a_reranker_keeps_its_scores() -> None:
    recipe, (text, video) = recipes.filip(), raw()
    for direction in ("t2v", "v2t"):
        close(recipe.reranked(text, video, direction), recipe.scores(text, video, direction))
    with pytest.raises(ValueError, match="k: expected None without a reranker, got 3"):
        recipe.reranked(text, video, k=3)
    with pytest.raises(ValueError, match="rerank_k"):
        recipes.Recipe(recipe.scorer, recipe.loss, rerank_k=3)
