"""Tokens and Features: the accessor that scorers read, and slicing, joining, moving, saving."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import multigrain as mg
from tests import oracle
from tests.strategies import POISONS, close, gradients, leaves, pairs, poisoned

MASKED = ("prefix", "holes", "empty")


def same(actual: mg.Features, expected: mg.Features) -> None:
    """Equal values at real tokens, equal masks (None is all real), compared alike."""
    assert actual.names == expected.names
    for name in expected.names:
        assert actual[name].unit == expected[name].unit
        a, e = actual[name].normalized(), expected[name].normalized()
        close(a.features, e.features, 0.0)
        masks = [torch.ones(t.features.shape[:2], dtype=torch.bool) if t.mask is None else t.mask.cpu() for t in (a, e)]
        assert torch.equal(*masks)


@given(pairs())
def test_property_normalized_tokens_equal_oracle_and_pads_are_zero(device, pair):
    for features in pair:
        for name in features.names:
            tokens = features[name]
            values = tokens.features.reshape(tokens.batch_size, tokens.length, tokens.dim)
            expected = torch.tensor(
                [[oracle.normalise(t) for t in item] for item in values.tolist()], dtype=torch.float64
            )
            if tokens.mask is not None:
                expected = expected.masked_fill(~tokens.mask[..., None], 0.0)
            close(tokens.to(device).normalized().features, expected, 1e-14)


@given(pairs())
def test_property_normalizing_twice_is_normalizing_once(device, pair):
    text = pair.text.to(device)
    once = text.normalized()
    assert all(once[name].unit for name in once.names)
    for name in text.names:
        close(once[name].features, text[name].normalized().features, 0.0)
    same(once.normalized(), once)


@given(pairs(), st.sampled_from(POISONS))
def test_property_unit_tokens_are_compared_as_they_are_but_for_their_pads(device, pair, poison):
    tokens = poisoned(pair.text, poison).to(device)["word"]
    out = mg.Tokens(tokens.features, tokens.mask, unit=True).normalized().features
    real = torch.ones(out.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
    close(out, pair.text["word"].features.masked_fill(~real.cpu()[..., None], 0.0), 0.0)


@given(pairs(masks=MASKED), st.sampled_from(POISONS))
def test_property_poison_behind_a_mask_reaches_no_normalized_token_and_no_gradient(device, pair, poison):
    results = []
    for features in (pair.text.to(device), poisoned(pair.text, poison).to(device)):
        features = leaves(features)
        out = [features[name].normalized().features for name in features.names]
        sum(x.square().mul(torch.arange(x.numel(), device=device).view_as(x)).sum() for x in out).backward()
        results.append([*out, *gradients(features)])
    for clean, dirty in zip(*results, strict=True):
        close(dirty, clean, 0.0)


def test_property_a_zero_token_stays_zero_with_zero_gradient(device):
    x = torch.zeros(2, 3, 4, device=device, requires_grad=True)
    out = mg.Tokens(x).normalized().features
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(pairs())
def test_property_half_tokens_are_widened_before_they_are_normalized(half, device, pair):
    tokens = pair.text.to(device, half)["word"]
    out = tokens.normalized().features
    assert out.dtype == torch.float32
    close(out, tokens.to(dtype=torch.float32).normalized().features, 0.0)


@given(pairs(), st.data())
def test_property_slices_joined_are_the_whole(device, pair, data):
    text = data.draw(st.sampled_from([pair.text, pair.text.normalized()])).to(device)
    cut = data.draw(st.integers(0, len(text)))
    parts = [text[:cut] if cut else None, text[cut:] if cut < len(text) else None]
    same(mg.Features.cat([part for part in parts if part is not None]), text)
    same(mg.Features.cat([text[i] for i in range(len(text))]), text)


@given(pairs(), st.data())
def test_property_indexing_takes_the_same_items_of_every_grain(device, pair, data):
    text = data.draw(st.sampled_from([pair.text, pair.text.normalized()])).to(device)
    rows = data.draw(st.lists(st.integers(-len(text), len(text) - 1), min_size=1, max_size=5))
    taken = text[torch.tensor(rows, device=device)]
    same(taken, text[rows])
    same(taken, mg.Features.cat([text[i] for i in torch.tensor(rows)]))  # tensors of no dimension, such as a loop gives
    same(taken, mg.Features.cat([text[i] for i in rows]))
    assert torch.equal(taken["sentence"].features, text["sentence"].features[rows])


@given(pairs(tokens=3), pairs(tokens=6))
def test_property_joining_pads_to_the_longest_and_masks_the_pads(first, second):
    """Each part keeps its tokens and its mask; what was appended is masked."""
    words = [p.text["word"] for p in (first, second)]
    parts = [mg.Tokens(w.features[..., :2], w.mask) for w in words]
    joined = mg.Features.cat([mg.Features(word=part) for part in parts])["word"]
    assert joined.length == max(part.length for part in parts)
    start = 0
    for part in parts:
        rows = joined[start : start + len(part)]
        head = mg.Tokens(rows.features[:, : part.length], None if rows.mask is None else rows.mask[:, : part.length])
        same(mg.Features(word=head), mg.Features(word=part))
        assert rows.mask is None or not rows.mask[:, part.length :].any()
        start += len(part)


@given(pairs(tokens=3), pairs(tokens=3))
def test_property_joining_normalizes_the_parts_that_are_not_unit(first, second):
    """Unit tokens are compared as they are, so their length must survive tokens that still have to be normalized."""
    words = [p.text["word"] for p in (first, second)]
    unit, plain = (mg.Tokens(w.features[..., :2], w.mask, unit=u) for w, u in zip(words, (True, False), strict=True))
    joined, expected = (
        mg.Features.cat([mg.Features(word=part) for part in parts])
        for parts in ((unit, plain), (unit.normalized(), plain.normalized()))
    )
    same(joined, expected)


@given(pairs())
def test_property_saving_and_loading_gives_the_same_features(tmp_path_factory, device, pair):
    path = tmp_path_factory.mktemp("features") / "text.features"
    for text in (pair.text, pair.text.normalized()):
        text.to(device).save(path)
        loaded = mg.Features.load(path, device=device)
        assert loaded.device.type == device.type
        same(loaded, text)
    assert [p.name for p in path.parent.iterdir()] == ["text.features"]  # no temporary file is left behind


@given(pairs())
def test_property_moving_keeps_masks_and_changes_dtype_alone(device, pair):
    there = pair.text.to(device).to(dtype=torch.float32)
    assert there["word"].dtype == torch.float32
    same(there.to("cpu"), pair.text.to(dtype=torch.float32))
    same(there.to("cpu").to(dtype=torch.float64).to(dtype=torch.float32), there)


def test_features_give_their_grains_by_name_and_their_items_by_index():
    word = mg.Tokens(torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
    features = mg.Features(sentence=torch.randn(3, 4), word=word)
    assert features.names == ("sentence", "word")
    assert features["word"] is word
    assert "word" in features
    assert "frame" not in features
    assert (features.batch_size, len(features), len(word)) == (3, 3, 3)
    assert (features["sentence"].length, word.length, word.dim) == (1, 5, 4)
    assert (features.device, word.dtype) == (torch.device("cpu"), torch.float32)


def test_a_file_holds_neither_a_graph_nor_what_features_are_a_slice_of(tmp_path):
    x = torch.randn(1000, 8, requires_grad=True)
    mg.Features(a=(2 * x[:, None], torch.ones(1000, 1, dtype=torch.bool)))[:2].save(tmp_path / "a.pt")
    assert not mg.Features.load(tmp_path / "a.pt")["a"].features.requires_grad
    assert (tmp_path / "a.pt").stat().st_size < 4000


def test_detached_features_have_no_graph():
    x = torch.randn(2, 3, requires_grad=True)
    assert not mg.Features(a=2 * x).detach()["a"].features.requires_grad


def test_wrappers_find_and_replace_the_tensors_of_features():
    """As a dataclass and as a pytree: DDP and FSDP2 use both, the latter on inputs too."""
    word = mg.Tokens(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), unit=True)
    features = mg.Features(sentence=torch.randn(2, 4), word=word)
    doubled = pytree.tree_map_only(torch.Tensor, lambda x: 2 * x if x.is_floating_point() else x, features)
    by_field = replace(features, _grains={name: replace(x, features=2 * x.features) for name, x in grains(features)})
    for made in (doubled, by_field):
        assert made.names == features.names
        assert torch.equal(made["word"].features, 2 * word.features)
        assert made["word"].mask is word.mask
        assert made["word"].unit
    assert [f.name for f in fields(features)] == ["_grains"]


def grains(features: mg.Features) -> list[tuple[str, mg.Tokens]]:
    return [(name, features[name]) for name in features.names]


def test_a_file_of_one_number_is_no_file_of_a_billion(tmp_path):
    torch.save({"x": (torch.ones(1).expand(10**9, 1), None, False)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="features that the file holds"):
        mg.Features.load(tmp_path / "x.pt")
