"""What holds for every recipe: gradients, masks, shapes, errors, and a loss that falls."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import multigrain as mg
from multigrain import recipes
from multigrain.recipes.table import END, START, render
from tests.recipes.features import DIM, FRAMES, WORDS, raw, small
from tests.strategies import close, gradients, leaves, randomise

PAGE = Path(__file__).parents[2] / "docs/recipes.md"

every = pytest.mark.parametrize("name", recipes.names())
VARIANTS = [
    ("clip4clip", {"temporal": "lstm"}),
    ("clip4clip", {"temporal": "transformer"}),
    ("clip4clip", {"temporal": "tight"}),
    ("clipbert", {"pool": "max", "loss": "margin"}),
    ("filip", {"share": 0.25}),
    ("matching_head", {"negatives": "hard"}),
    ("query_scoring", {"pool": "scores"}),
    ("ucofia", {"max_words": WORDS}),
    ("xclip", {"max_words": WORDS}),
]


# Biases that all logits of a softmax share, which they do not move: their gradient is what rounding leaves, or nothing.
SHARED = ("scorer.head.bias", "scorer.norm.bias", "pooler.key.bias", "mlps.query.2.bias", "mlps.candidate.2.bias")


@every
def test_scores_and_loss_are_finite(name: str) -> None:
    recipe = small(name).eval()
    scores = recipe.scores(*raw(3, 5))
    assert scores.shape == (3, 5) and scores.isfinite().all()
    assert recipe.scores(*raw(3, 5), "v2t").shape == (3, 5)
    loss = recipe(*raw())
    assert loss.shape == () and loss.isfinite()


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in recipes.names()), *VARIANTS], ids=str)
def test_gradients_reach_every_parameter(name: str, settings: dict[str, Any]) -> None:
    recipe = small(name, **settings)
    randomise(recipe, spread=0.05)  # a weight that starts at zero would stop what lies in front of it
    text, video = raw(6)
    recipe(leaves(text), leaves(video)).backward()
    trained = {n: p for n, p in recipe.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []
    assert [n for n, p in trained.items() if not p.grad.any() and not n.endswith(SHARED)] == []
    assert all(p.grad.isfinite().all() for p in recipe.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in recipes.names()), *VARIANTS], ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_what_is_behind_a_mask_changes_nothing(name: str, settings: dict[str, Any], poison: float) -> None:
    recipe = small(name, **settings)
    results = []
    for junk in (0.0, poison):
        recipe.zero_grad()
        torch.manual_seed(1)
        text, video = (leaves(side) for side in raw(poison=junk))
        loss = recipe(text, video)
        loss.backward()
        learned = [p.grad.clone() for p in recipe.parameters() if p.grad is not None]
        scores = recipe.scores(*raw(poison=junk))
        results.append([loss.detach(), scores.detach(), *learned, *gradients(text, video)])
    for clean, poisoned in zip(*results, strict=True):
        close(poisoned, clean, 0.0)


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in recipes.names()), *VARIANTS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_another_dtype_are_scored(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    recipe = small(name, **settings).eval()
    text, video = raw()
    torch.manual_seed(1)
    expected = recipe(text, video).detach(), recipe.scores(text, video).detach()
    torch.manual_seed(1)
    text, video = text.to(dtype=dtype), video.to(dtype=dtype)
    found = recipe(text, video), recipe.scores(text, video)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype in (torch.float32, dtype)
        close(x.float(), y, 0.05 if dtype != torch.float64 else 1e-4)


@every
def test_a_score_depends_on_its_own_pair(name: str) -> None:
    recipe, (text, video) = small(name).eval(), raw(4, 5)
    whole = recipe.scores(text, video)
    close(recipe.scores(text[1:3], video[2:]), whole[1:3, 2:], 1e-5)


@every
def test_a_grain_that_is_missing_is_named(name: str) -> None:
    recipe, (text, video) = small(name), raw()
    with pytest.raises(KeyError, match="no grain 'frame': these features have other"):
        recipe(text, mg.Features(other=video["frame"]))
    with pytest.raises(KeyError, match=r"no grain '(sentence|word)': these features have other"):
        recipe(mg.Features(other=text["word"]), video)


@every
def test_sides_of_two_widths_are_named(name: str) -> None:
    recipe, text = small(name), raw()[0]
    wide = mg.Features(frame=torch.randn(4, FRAMES, DIM + 1))
    with pytest.raises(ValueError, match=rf"width.*{DIM}.*{DIM + 1}"):
        recipe(text, wide)


def test_published_settings_are_the_defaults() -> None:
    wenlan, albef, taco, hero = (recipes.build(name, 64) for name in ("wenlan", "albef", "taco", "hero"))
    assert (wenlan.momentum, wenlan.queue_size) == (0.99, 9600)
    assert (albef.momentum, albef.queue_size, albef.rerank_k) == (0.995, 65536, 128)
    contrast, matching = (term.loss for term in albef.loss.summands())
    assert (contrast.distillation, matching.negatives, matching.k) == (0.4, "hard", 1)
    limits = contrast.criterion.min_logit_scale, contrast.criterion.max_logit_scale
    assert all(math.isclose(math.exp(-x), t) for x, t in zip(limits, (0.5, 0.001), strict=True))  # temperatures
    weights = {term.name: term.weight for term in taco.loss.summands()}
    assert weights == {"global": 1.0, "token": 0.5, "fusion": 1.0}
    cascade = taco.loss.summands()[2].loss
    assert (cascade.negatives, cascade.k, cascade.contrastive) == ("cascade", 8, True)
    assert cascade.ranker is taco.scorer
    rank = hero.loss.criterion
    assert (rank.margin, rank.hard_pool, rank.hard_weight, rank.easy_weight) == (0.1, 20, 10.0, 0.1)
    assert [term.weight for term in recipes.drl(8).loss.summands()] == [1.0, 0.001]
    assert recipes.clipbert(8, pool="max", loss="margin").loss.criterion.margin == 0.2
    assert recipes.matching_head(8).loss.negatives == "random"


@every
def test_what_was_learned_is_in_the_state(name: str) -> None:
    learned, fresh = small(name), small(name)
    randomise(learned)
    fresh.load_state_dict(learned.state_dict())
    for recipe in (fresh, copy.deepcopy(learned)):
        close(recipe.scores(*raw()), learned.scores(*raw()), 0.0)
        assert len(list(recipe.parameters())) == len(list(learned.parameters()))


@every
def test_a_few_steps_lower_the_loss(name: str) -> None:
    recipe, (text, video) = small(name), raw(6)
    torch.manual_seed(0)
    maps = torch.nn.ModuleList([torch.nn.Linear(DIM, DIM), torch.nn.Linear(DIM, DIM)])
    optimizer = torch.optim.AdamW([*recipe.parameters(), *maps.parameters()], 0.02)

    def mapped(features: mg.Features, by: torch.nn.Module) -> mg.Features:
        given = {n: features[n] for n in features.names}
        return mg.Features(
            **{n: t if n == "word_weight" else mg.Tokens(by(t.features), t.mask) for n, t in given.items()}
        )

    losses = []
    for step in range(20):
        torch.manual_seed(step % 2)  # of negatives drawn at random
        loss = recipe(mapped(text, maps[0]), mapped(video, maps[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


def test_a_recipe_is_cached_with_its_terms() -> None:
    recipe, (text, video) = small("drl"), raw()
    cached = mg.CachedLoss(recipe)
    loss = cached(lambda rows: (text[rows], video[rows]), [slice(0, 1), slice(1, 4)])
    close(loss, recipe(text, video), 1e-5)
    assert set(cached.terms) == set(recipe.terms) == {"contrast", "decorrelation"}


@every
def test_a_recipe_says_what_it_is(name: str) -> None:
    recipe = small(name)
    assert recipe.name == name and recipe.about == recipes.about(name)
    assert repr(recipe).startswith(f"Recipe(\n  {name}") and "(loss): " in repr(recipe)
    assert ("\n  (scorer): " in repr(recipe)) == (recipe.scorer not in set(recipe.loss.modules()))
    assert getattr(recipes, name).__doc__
    assert re.fullmatch(r".+ \d{4}, arXiv \d{4}\.\d{5}(; .+)?", recipe.about.paper)
    assert bool(recipe.about.figure) == bool(recipe.about.source)


def test_the_page_shows_the_table_of_today() -> None:
    """To update it: python -m multigrain.recipes docs/recipes.md."""
    page = PAGE.read_text()
    assert page[page.index(START) : page.index(END)] == START + render()


def test_the_page_speaks_of_every_recipe() -> None:
    page = PAGE.read_text()
    assert [name for name in recipes.names() if f"`{name}`" not in page] == []


@every
def test_dual_softmax_of_one_query_changes_nothing(name: str) -> None:
    scores = small(name).scores(*raw(1, 4))
    close(mg.hubness.dual_softmax(scores), scores, 1e-6)


def test_names_and_settings_that_are_wrong_are_named() -> None:
    with pytest.raises(ValueError, match=r"recipe: expected one of albef, .* got 'clop'"):
        recipes.build("clop")
    with pytest.raises(ValueError, match="dim: recipe 'xclip' expected the width"):
        recipes.build("xclip")
    with pytest.raises(TypeError, match=r"settings of recipe 'clip': expected none, got colour"):
        recipes.build("clip", colour=1)
    with pytest.raises(TypeError, match=r"settings of recipe 'xclip': expected dim, .*, got colour"):
        recipes.build("xclip", colour=1)
    with pytest.raises(TypeError, match=r"settings of recipe 'drl': expected dim, decorrelation, weighted; .* 'decor'"):
        recipes.drl(8, decor=0.01)


@every
def test_a_grain_that_the_heads_make_is_not_overwritten_in_silence(name: str) -> None:
    """A script that tries every recipe hands them what they all read."""
    recipe, (text, video) = small(name).eval(), raw()
    given = mg.Features(frame=video["frame"], video=torch.randn(4, DIM))
    expected = recipe.scores(text, video)
    close(recipe.scores(text, given.only("frame")), expected, 0.0)
    if "video" in recipe.video_head(video):
        with pytest.raises(ValueError, match=r"target: expected features without 'video'.*features\.only\(\.\.\.\)"):
            recipe.scores(text, given)
    else:
        close(recipe.scores(text, given), expected, 0.0)


def test_losses_of_recipes_add_up_and_recipes_do_not() -> None:
    drl, filip, albef = (small(name) for name in ("drl", "filip", "albef"))
    text, video = raw()
    for add in (lambda: drl + filip, lambda: 0.5 * filip, lambda: drl.loss + filip, lambda: sum([drl, filip])):
        with pytest.raises(TypeError, match=r"Recipe: expected its loss in a sum, as in `a\.loss \+ 0\.5 \* b\.loss`"):
            add()
    close((drl.loss + 0.5 * filip.loss)(text, video), drl(text, video) + 0.5 * filip(text, video), 1e-6)
    scorer = drl.scorer
    mixed = recipes.Recipe(scorer, drl.loss + albef.loss, video_head=albef.video_head, momentum=albef.momentum)
    mixed(text, video).backward()
    assert set(mixed.terms) == {"contrast", "decorrelation", "contrast_2", "matching"}


def test_parts_of_a_recipe_are_what_they_are_called() -> None:
    drl = small("drl")
    with pytest.raises(TypeError, match=r"scorer: expected a scorer of two Features, .*, got Sum"):
        recipes.Recipe(drl.loss, drl.scorer)
    with pytest.raises(TypeError, match="loss: expected a Loss, got MultiGrain"):
        recipes.Recipe(drl.scorer, drl.scorer)
    with pytest.raises(TypeError, match="text: expected a Features, got Tensor"):
        drl(torch.randn(4, DIM), raw()[1])
    with pytest.raises(TypeError, match="about: expected an About, got function"):
        recipes.register_recipe(recipes.drl)


def test_a_new_recipe_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("_REGISTRY", "_ABOUT"):
        monkeypatch.setattr(recipes.base, registry, dict(getattr(recipes.base, registry)))

    about = recipes.About("Mine", "Me 2026, arXiv 0000.00000", "word-frame", "max", "InfoNCE", "D")

    def mine() -> recipes.Recipe:
        scorer = mg.MultiGrain(mg.FrameWord("max_max"))
        return recipes.Recipe(scorer, mg.RetrievalLoss(scorer, mg.InfoNCE()))

    for _ in range(2):  # as a cell of a notebook that runs again
        recipes.register_recipe(about)(mine)
    assert "mine" in recipes.names() and recipes.build("mine").about.system == "Mine"

    def clip() -> recipes.Recipe:
        return mine()

    with pytest.raises(ValueError, match="'clip': the name is taken"):
        recipes.register_recipe(about)(clip)
