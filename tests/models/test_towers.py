from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch

from multigrain.heads.transformer import Transformer
from multigrain.models import TimmTower, WordTower, build_vocabulary
from multigrain.models.towers import checked_sentences, split_words

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = "vit_tiny_patch16_224"


def word_tower(**settings: Any) -> WordTower:
    torch.manual_seed(0)
    vocabulary = build_vocabulary(["go to the red ball", "pick up a blue box, then go to the key"])
    return WordTower(vocabulary, 8, width=16, depth=1, heads=2, **settings).eval()


def test_timm_tower_gives_one_feature_a_frame_and_reads_bytes_as_it_reads_floats():
    torch.manual_seed(0)
    tower = TimmTower(VIT, 8, TINY).eval()
    frames = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    features = tower(frames)
    assert features.shape == (3, 8)
    torch.testing.assert_close(features, tower(frames.float() / 255))


def test_any_other_timm_model_serves():
    assert TimmTower("resnet10t", 8)(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_without_pooling_the_projection_tells_places_apart():
    torch.manual_seed(0)
    settings = {**TINY, "global_pool": "", "class_token": False, "depth": 0}
    tower = TimmTower(VIT, 8, settings).eval()
    with torch.no_grad():
        tower.backbone.pos_embed.zero_()
    assert tower.projection.in_features == 4 * 16
    frame = torch.zeros(1, 3, 16, 16)
    frame[..., :8, :8] = 1
    assert not torch.allclose(tower(frame), tower(frame.flip(-1)))
    assert TimmTower("resnet10t", 8, {"global_pool": ""})(torch.rand(2, 3, 176, 176)).shape == (2, 8)


def test_unknown_timm_name_is_named_with_similar_ones():
    with pytest.raises(ValueError, match=r"expected a model of timm .*'vit_enormous'; there are .*vit_"):
        TimmTower("vit_enormous", 8)


def test_arguments_that_timm_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"vision kwargs: .*'depht'"):
        TimmTower(VIT, 8, {"depht": 2})


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[models\]"'):
        TimmTower(VIT, 8, TINY)


def test_torchvision_of_another_torch_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"torchvision was built for another torch.*download\.pytorch\.org/whl/cpu"):
        TimmTower(VIT, 8, TINY)


def test_words_and_punctuation_are_tokens_of_their_own():
    assert split_words("Go to the box, then stop") == ["go", "to", "the", "box", ",", "then", "stop"]


def test_word_features_line_up_with_the_words():
    tower = word_tower()
    sentences = ["go to the red ball", "pick up a blue box, then go to the key"]
    sentence, words, mask = tower(sentences)
    assert sentence.shape == (2, 8)
    assert words.shape == (2, 11, 8)
    assert mask.sum(1).tolist() == [len(tower.words(text)) for text in sentences] == [5, 11]


def test_a_sentence_does_not_depend_on_the_batch_it_is_in():
    tower = word_tower()
    alone = tower(["go to the red ball"])
    beside = tower(["go to the red ball", "pick up a blue box, then go to the key"])
    torch.testing.assert_close(alone[0][0], beside[0][0])
    torch.testing.assert_close(alone[1][0], beside[1][0, :5])


def test_unknown_words_share_one_embedding_and_known_ones_do_not():
    tower = word_tower()
    zebra, lion, ball = (tower([f"go to the red {word}"])[0] for word in ("zebra", "lion", "ball"))
    torch.testing.assert_close(zebra, lion)
    assert not torch.allclose(zebra, ball)


def test_word_order_matters():
    tower = word_tower()
    one, other = tower(["the red ball the blue box", "the blue ball the red box"])[0]
    assert not torch.allclose(one, other)


def test_a_long_sentence_is_cut_with_a_warning():
    tower = word_tower(max_words=4)
    with pytest.warns(UserWarning, match="1 of 2 sentences were cut to 4 words"):
        _, words, mask = tower(["go to the red ball", "red ball"])
    assert words.shape == (2, 4, 8)
    assert mask.sum(1).tolist() == [4, 2]
    assert tower.words("go to the red ball") == ["go", "to", "the", "red"]


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["red ball", " "], r"sentences\[1\]: expected at least one word, got ' '"),
        ([], "sentences: expected at least one, got none"),
    ],
)
def test_sentences_without_words_are_named(sentences: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        word_tower()(sentences)


def test_one_string_is_no_list():
    with pytest.raises(TypeError, match="expected a list of strings, got one string 'red ball'"):
        word_tower()("red ball")


def test_token_ids_are_not_for_a_vocabulary_of_words():
    with pytest.raises(TypeError, match="expected a list of strings, got Tensor"):
        word_tower()(torch.zeros(1, 2, dtype=torch.long))  # type: ignore[arg-type]


def test_the_size_of_the_frames_is_known_and_blank_ones_are_zeros_to_the_model():
    assert TimmTower(VIT, 8, TINY).size == 16
    assert TimmTower("resnet10t", 8).size == 176
    tower = TimmTower("resnet10t", 8, mean=None, std=None)
    assert tower.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    seen: list[torch.Tensor] = []
    tower.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tower.eval()(tower.blank(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)))
    assert seen[0].shape == (1, 3, 32, 48)
    assert (seen[0] == 0).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads: expected a divisor of width 16, got 3"):
        Transformer(16, 1, 3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_transformer_reads_no_padding_forward_or_backward(poison: float):
    torch.manual_seed(0)
    transformer = Transformer(8, 2, 2).double()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    clean = torch.randn(2, 3, 8, dtype=torch.float64).masked_fill(~mask[..., None], 0.0)

    def run(fill: float) -> list[torch.Tensor]:
        x = clean.masked_fill(~mask[..., None], fill).requires_grad_()
        transformer.zero_grad()
        out = transformer(x, mask)
        out.square().sum().backward()
        assert x.grad is not None
        return [out.detach(), x.grad, *(p.grad.clone() for p in transformer.parameters() if p.grad is not None)]

    for expected, got in zip(run(0.0), run(poison), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    alone = transformer(clean[:1, :2], mask[:1, :2])
    torch.testing.assert_close(run(poison)[0][:1, :2], alone)


def test_half_a_surrogate_pair_is_a_letter_that_every_tokenizer_takes():
    assert checked_sentences(["a \ud800 dog", "\udfff"]) == ["a \ufffd dog", "\ufffd"]
    assert split_words("a\ud800dog") == ["a", "\ufffd", "dog"]
