"""Outputs of transformers' encoders as Features."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTModel

import multigrain as mg
from multigrain.interop.transformers import encoder_features, text_features, video_features

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
IDS = torch.tensor([[52, 3, 7, 53], [52, 4, 53, 53]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # CLIP pads with the last token: ids do not tell


def clip() -> CLIPModel:
    torch.manual_seed(0)
    words = {"vocab_size": 54, "max_position_embeddings": 8, "bos_token_id": 52, "eos_token_id": 53}
    return CLIPModel(CLIPConfig(text_config={**SIZES, **words}, vision_config=VISION, projection_dim=12)).eval()


@torch.no_grad()
def test_clip_gives_sentence_words_video_and_frames():
    model = clip()
    pixels = torch.rand(2, 3, 3, 16, 16)
    real = torch.tensor([[1, 1, 1], [1, 0, 0]])
    poisoned = pixels.clone()
    poisoned[1, 1:] = torch.nan
    text, video = text_features(model, IDS, MASK), video_features(model, poisoned, real)
    # Of the first frame alone and the sentence: CLIP's own cosines.
    output = model(input_ids=IDS, attention_mask=MASK, pixel_values=pixels[:, 0])
    cosines = mg.VideoSentence()(text, video_features(model, pixels[:, :1]))
    torch.testing.assert_close(cosines * model.logit_scale.exp(), output.logits_per_text, atol=1e-5, rtol=1e-5)
    hidden = output.text_model_output.last_hidden_state
    torch.testing.assert_close(text["word"].features, model.text_projection(hidden))
    assert torch.equal(text["word"].mask, MASK.bool())
    # The vector of a sentence is that of its last token.
    torch.testing.assert_close(text["word"].features[[0, 1], [3, 2]], text["sentence"].features)
    frames = F.normalize(model.get_image_features(pixels[0]).pooler_output, dim=-1)
    torch.testing.assert_close(video["video"].features[0], frames.mean(0))
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord())
    scores = scorer(text, video)
    assert scores.isfinite().all()
    alone = scorer(text, video_features(model, pixels[1:, :1]))
    torch.testing.assert_close(scores[:, 1:], alone)


@torch.no_grad()
def test_any_pair_of_encoders():
    torch.manual_seed(0)
    bert, vit = BertModel(BertConfig(vocab_size=54, **SIZES)).eval(), ViTModel(ViTConfig(**VISION)).eval()
    said, seen = bert(input_ids=IDS, attention_mask=MASK), vit(torch.rand(5, 3, 16, 16))
    text, image = encoder_features(said, MASK), encoder_features(seen, token="patch", pooled="image")
    assert text.names == ("sentence", "word") and image.names == ("image", "patch")
    assert torch.equal(text["sentence"].features, said.pooler_output)
    assert image["patch"].length == 5 and image["patch"].mask is None
    assert mg.MultiGrain(mg.Grain("sentence", "image"), mg.Grain("word", "patch", "aosm"))(text, image).shape == (2, 5)

    said.pooler_output = None  # as of encoders without a pooler
    projection = torch.nn.Linear(16, 6)
    text = encoder_features(said, MASK, projection=projection)
    mean = projection(said.last_hidden_state[1, :3]).mean(0)
    torch.testing.assert_close(text["sentence"].features[1], mean)


def test_an_old_version_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    old = SimpleNamespace(
        get_text_features=lambda **inputs: torch.ones(2, 12), get_image_features=lambda **inputs: torch.ones(2, 12)
    )
    with pytest.raises(ImportError, match=r"expected version 5 or newer.*4\.57\.1.*multigrain\[hf\]"):
        text_features(old, IDS, MASK)
    with pytest.raises(ImportError, match=r"expected version 5 or newer.*4\.57\.1.*multigrain\[hf\]"):
        video_features(old, torch.rand(2, 1, 3, 16, 16))
