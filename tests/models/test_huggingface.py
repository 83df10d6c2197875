"""Models of transformers, through open_clip's modules, give the features of transformers."""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from multigrain.models import XCLIP, TemporalConfig
from multigrain.models.clip import MEAN, STD

CAPTIONS = ["a dog", "cab at bay"]
SETTINGS: dict[str, Any] = {"max_words": 12, "temporal": TemporalConfig(depth=1)}


def clip(**text: Any) -> CLIPModel:
    shared = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {"vocab_size": 54, "max_position_embeddings": 20, "bos_token_id": 52, "eos_token_id": 53}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**shared, **words, "layer_norm_eps": 1e-3, "initializer_range": 0.1, **text},
        vision_config={**shared, "image_size": 16, "patch_size": 8, "initializer_range": 0.1},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def letters() -> CLIPTokenizer:
    """A tokenizer of letters, of the 54 tokens of the model."""
    pieces = [
        *string.ascii_lowercase,
        *(f"{c}</w>" for c in string.ascii_lowercase),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("eos", [53, 2])
def test_features_are_transformers_own(eos: int):
    theirs = clip(eos_token_id=eos)
    model = XCLIP.from_clip(theirs, tokenizer=letters(), **SETTINGS).eval()
    frames = torch.rand(3, 3, 16, 16)
    pixels = (frames - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    inputs = letters()(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        close(model.vision(frames), theirs.get_image_features(pixels).pooler_output)
        text = theirs.get_text_features(**inputs)
        sentence, words, mask = model.text(CAPTIONS)
        close(sentence, text.pooler_output)
        real = inputs["attention_mask"].bool()
        assert torch.equal(mask, real)
        close(words[real], theirs.text_projection(text.last_hidden_state)[real])
        for got, expected in zip(model.text((inputs["input_ids"], real)), (sentence, words), strict=False):
            close(got[real] if got.ndim == 3 else got, expected[real] if got.ndim == 3 else expected)
    close(model.logit_scale, theirs.logit_scale)


def test_a_folder_gives_model_and_tokenizer_and_the_model_keeps_both(tmp_path: Path):
    theirs = clip()
    theirs.save_pretrained(tmp_path / "theirs")
    letters().save_pretrained(tmp_path / "theirs")
    model = XCLIP.from_clip(tmp_path / "theirs", **SETTINGS).eval()
    expected = XCLIP.from_clip(theirs, tokenizer=letters(), **SETTINGS).eval().text(CAPTIONS)
    assert torch.equal(model.text(CAPTIONS)[0], expected[0])
    assert model.text.words("a dog") == ["<|startoftext|>", "a", "d", "o", "g", "<|endoftext|>"]
    model.save_pretrained(tmp_path / "ours")
    loaded = XCLIP.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.text(CAPTIONS)[1], expected[1])
    assert loaded.text.words("a dog") == model.text.words("a dog")


def test_training_leaves_the_given_model_alone():
    theirs = clip()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    model = XCLIP.from_clip(theirs, **SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_a_tokenizer_of_two_tokens_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tokenizer: expected a vocabulary of 54 tokens, .* got 2; are its files"):
        XCLIP.from_clip(clip(), tokenizer=CLIPTokenizer.from_pretrained(tmp_path), **SETTINGS)


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"expected a transformers.CLIPModel, got a CLIPTextModel"):
        XCLIP.from_clip(clip().text_model)
    with pytest.raises(ValueError, match="expected the last token's id to be the highest, got eos_token_id 7"):
        XCLIP.from_clip(clip(eos_token_id=7))
    with pytest.raises(ValueError, match="expected hidden_act gelu or quick_gelu in both towers, got gelu, quick_gelu"):
        XCLIP.from_clip(clip(hidden_act="gelu"))
    clip().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[hf\]"'):
        XCLIP.from_clip(tmp_path)
