"""CLIP's towers: the same numbers as open_clip, timm and transformers, with a feature for every word."""

from __future__ import annotations

import dataclasses
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from multigrain.models import (
    XCLIP,
    ClipConfig,
    ClipText,
    ClipVision,
    ModelConfig,
    RecipeConfig,
    TemporalConfig,
    VisionConfig,
)
from multigrain.models.clip import MEAN, STD
from multigrain.recipes import build as build_recipe
from tests.models.clips import CAPTIONS, SIZES, saved, sizes, tiny_clip, torchscript

TIMM = "vit_base_patch16_clip_quickgelu_224"
TIMM_SIZES = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 1}


@pytest.fixture(scope="module")
def clip() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def weights(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(clip, tmp_path_factory.mktemp("clip") / "clip.pt")


def build(weights: Path, **settings: Any) -> XCLIP:
    settings = {"max_words": 16, "max_frames": 4, "temporal": TemporalConfig(depth=2), **settings}
    return XCLIP.from_clip(weights, SIZES, **settings).eval()


@pytest.fixture
def frames() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)


def pixels(frames: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (frames / 255 - mean) / std


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def test_sentences_and_frames_are_open_clip_s(clip: Any, weights: Path, frames: Tensor):
    model = build(weights)
    sentence, words, mask = model.text(CAPTIONS)
    ids = open_clip.SimpleTokenizer()(CAPTIONS, 20)
    close(sentence, clip.encode_text(ids))
    close(words[range(2), mask.sum(1) - 1], sentence)
    assert mask.sum(1).tolist() == (ids.argmax(1) + 1).tolist() == [7, 14]
    close(model.vision(frames[0]), clip.encode_image(pixels(frames[0])))
    close(model.vision(frames[0] / 255), model.vision(frames[0]))
    close(model.logit_scale, clip.logit_scale)


def test_words_are_the_projected_states_of_their_tokens(clip: Any, weights: Path):
    ids = open_clip.SimpleTokenizer()(CAPTIONS, 20)
    hidden = clip.transformer(clip.token_embedding(ids) + clip.positional_embedding, attn_mask=clip.attn_mask)
    close(build(weights).text(CAPTIONS)[1], (clip.ln_final(hidden) @ clip.text_projection)[:, :14])


def test_ids_are_the_same_as_their_captions_and_the_id_0_is_a_word(weights: Path):
    model = build(weights)
    ids = open_clip.SimpleTokenizer()(CAPTIONS, 20)
    for got, expected in zip(model.text(ids), model.text(CAPTIONS), strict=True):
        close(got.float(), expected.float())
    ids[0, 2] = 0
    assert model.text(ids)[2].sum(1).tolist() == [7, 14]
    junk = torch.where(torch.arange(20) > ids.argmax(1, keepdim=True), 7, ids)
    for got, expected in zip(model.text(junk), model.text(ids), strict=True):
        close(got.float(), expected.float())
    given = model.encode_text((ids, torch.arange(20) < torch.tensor([[4], [14]])))
    assert given["word"].mask is not None
    assert given["word"].mask.sum(1).tolist() == [4, 14]


def test_words_name_their_features(weights: Path):
    text = build(weights).text
    assert text.words(CAPTIONS[0]) == ["<start_of_text>", "a", "man", "rides", "a", "horse", "<end_of_text>"]
    bare = build(weights, include_bos=False, include_eos=False).text
    assert bare.words(CAPTIONS[0]) == ["a", "man", "rides", "a", "horse"]
    _, words, mask = bare(CAPTIONS)
    assert mask.sum(1).tolist() == [5, 12]
    close(words[0, :5], text(CAPTIONS)[1][0, 1:6])


def test_a_long_caption_keeps_its_last_token_and_is_counted(clip: Any, weights: Path):
    text = build(weights, max_words=8).text
    with pytest.warns(UserWarning, match="1 of 2 captions were cut to 8 tokens") as caught:
        sentence, words, mask = text(CAPTIONS)
    assert len(caught) == 1
    assert words.shape == (2, 8, 16)
    assert mask.sum(1).tolist() == [7, 8]
    cut = open_clip.SimpleTokenizer()(CAPTIONS, 8)
    assert cut[1, -1] == 49407
    close(sentence, clip.encode_text(torch.nn.functional.pad(cut, (0, 12))))
    with pytest.warns(UserWarning, match="1 of 2 captions"):
        close(text(open_clip.SimpleTokenizer()(CAPTIONS, 20))[0], sentence)


def test_without_masks_all_captions_have_max_words(weights: Path):
    features = build(weights, masked=False).encode_text(CAPTIONS)
    assert features["word"].mask is None
    assert features["word"].length == 16
    assert build(weights).encode_text(CAPTIONS)["word"].length == 14


@pytest.mark.parametrize(
    ("text", "mask", "message"),
    [
        (torch.zeros(2, 3), None, r"ids: expected dtype torch.long, got torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int32), None, r"ids: expected dtype torch.long, got torch.int32"),
        (torch.zeros(3, dtype=torch.long), None, r"ids: expected shape \[B, W\], got \[3\]"),
        (torch.full((1, 3), 49408), None, r"ids: expected numbers from 0 to 49407, got 49408 to 49408"),
        (torch.ones(1, 3).long(), torch.ones(1, 2).bool(), r"mask: expected bool \[1, 3\], got torch.bool \[1, 2\]"),
        (torch.ones(1, 3).long(), torch.tensor([[True, False, True]]), "mask: .* none after a False"),
        ("a dog", None, "sentences: expected a list of strings, got one string 'a dog'"),
        ([b"a dog"], None, r"sentences\[0\]: expected a string, got bytes"),
        (["a dog", " "], None, r"sentences\[1\]: expected at least one word, got ' '"),
        ([], None, "sentences: expected at least one, got none"),
    ],
)
def test_other_texts_are_refused(weights: Path, text: Any, mask: Tensor | None, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        build(weights).encode_text(text if mask is None else (text, mask))


def test_a_vocabulary_without_a_tokenizer_takes_ids(tmp_path: Path):
    model = XCLIP.from_clip(None, sizes(text_cfg={"vocab_size": 60}), max_words=8, temporal=TemporalConfig(depth=1))
    assert model.encode_text(torch.tensor([[58, 3, 59, 0]]))["word"].length == 3
    with pytest.raises(TypeError, match=r"expected token ids \[B, W\].* no tokenizer is known .* of 60 tokens"):
        model.encode_text(CAPTIONS)
    model.save_pretrained(tmp_path)
    assert XCLIP.from_pretrained(tmp_path).text.tokenizer is None  # type: ignore[union-attr]


def test_captions_of_any_length_and_letters_are_read(weights: Path):
    text = build(weights).text
    noise = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    since = time.process_time()
    with pytest.warns(UserWarning, match="1 of 2 captions were cut"):
        ids, _ = text.tokenize([noise, "a \ud800 dog"])
    assert time.process_time() - since < 5  # byte pairs of the whole word take minutes
    with pytest.warns(UserWarning, match="2 of 2 captions were cut"):
        whole, _ = text.tokenize([noise[:1000], " a  dog \n" * 5000])
    assert torch.equal(ids[0], whole[0])
    with pytest.warns(UserWarning, match="1 of 1 captions were cut"):
        assert torch.equal(whole[1:], text.tokenize(["a dog " * 20])[0])
    assert torch.equal(ids[1, :5], text.tokenize(["a \ufffd dog"])[0][0, :5])


def test_frames_of_another_size_are_refused(weights: Path):
    with pytest.raises(ValueError, match=r"frames: expected shape \[U, 3, 32, 32\], got \[2, 3, 16, 16\]"):
        build(weights).vision(torch.zeros(2, 3, 16, 16))


def test_lengths_that_do_not_fit_are_refused(weights: Path):
    with pytest.raises(ValueError, match=r"max_words: expected at most 20 \(CLIP's positions\), got 21"):
        build(weights, max_words=21)
    with pytest.raises(ValueError, match="max_frames: expected at most 20 frames"):
        build(weights, max_frames=21)
    with pytest.raises(ValueError, match=r"temporal depth: expected at most 3 \(the layers of CLIP's text\), got 4"):
        build(weights, temporal=None)
    config = build(weights, mixing=True).config
    assert config is not None
    with pytest.raises(ValueError, match=r"max_frames: expected at most 4 \(the mixing matrix of grain .*, got 5"):
        XCLIP.from_config(dataclasses.replace(config, temporal=TemporalConfig(max_frames=5)))
    with pytest.raises(ValueError, match="mixing: expected X-CLIP's grains with AOSM"):
        build(weights, mixing=True, aggregator="max_max")
    model = build(weights, mixing=True)
    text, video = model.encode_text(CAPTIONS), model.encode_video(torch.rand(2, 4, 3, 32, 32))
    assert model.scorer(text, video).shape == (2, 2)
    model.max_frames = 5
    model.recipe.video_head.temporal = None
    with pytest.raises(ValueError, match="expected at most 4 candidate tokens"):
        model.scorer(text, model.encode_video(torch.rand(2, 5, 3, 32, 32)))


def test_the_first_layers_are_frozen_with_the_embeddings(weights: Path):
    def trained(model: XCLIP) -> set[str]:
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        return {name for name in names if name.startswith(("vision.", "text."))}

    everything = trained(build(weights))
    assert trained(build(weights, frozen=True)) == set()
    model = build(weights, frozen_layers=2)
    embeddings = {"conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"}
    kept = {f"vision.visual.{name}" for name in embeddings} | {
        "text.positional_embedding",
        "text.token_embedding.weight",
    }
    kept |= {name for name in everything if ".resblocks.0." in name or ".resblocks.1." in name}
    assert trained(model) == everything - kept
    assert {name for name in trained(model) if ".resblocks." not in name} == {
        *(f"vision.visual.{name}" for name in ("ln_post.weight", "ln_post.bias", "proj")),
        *(f"text.{name}" for name in ("ln_final.weight", "ln_final.bias", "text_projection")),
    }
    assert trained(build(weights, frozen_layers=0)) == everything - {name for name in kept if ".resblocks." not in name}
    model.freeze_vision(True)
    assert {name for name in trained(model) if name.startswith("vision.")} == set()
    model.freeze_vision(False)
    assert trained(model) == everything - kept
    rest = {name for name, p in model.named_parameters() if not name.startswith(("vision.", "text."))}
    assert all(p.requires_grad for name, p in model.named_parameters() if name in rest)


@pytest.mark.parametrize(
    ("name", "goes_on"), [("xclip", True), ("filip", True), ("align", False), ("frozen_in_time", False)]
)
def test_a_recipe_goes_on_from_clip_s_scale_unless_it_has_a_start_of_its_own(tmp_path: Path, name: str, goes_on: bool):
    clip = tiny_clip()
    with torch.no_grad():
        clip.logit_scale.fill_(4.25)
    saved(clip, tmp_path / "clip.pt")
    model = build(tmp_path / "clip.pt", recipe=RecipeConfig(name))
    own = build_recipe(name, model.vision.dim)
    scales = [p for n, p in model.recipe.loss.named_parameters() if n.endswith("logit_scale")]  # type: ignore[union-attr]
    assert scales and model.criterion.logit_scale == 4.25
    expected = [torch.tensor(4.25)] if goes_on else [p for n, p in own.loss.named_parameters() if "logit_scale" in n]
    assert [s.item() for s in scales] == [e.item() for e in expected]


def test_timm_s_layers_are_frozen_alike(weights: Path):
    model = XCLIP.from_timm(
        TIMM, weights, SIZES, vision_kwargs=TIMM_SIZES, max_words=8, temporal=TemporalConfig(depth=0), frozen_layers=2
    )
    trained = {name for name, p in model.vision.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
    assert {name for name in trained if not name.startswith("backbone.blocks.2.")} == {
        "backbone.norm.weight",
        "backbone.norm.bias",
        "projection.weight",
    }
    with pytest.raises(ValueError, match="frozen_layers: expected a transformer, got a TimmTower without numbered"):
        XCLIP.from_timm("resnet10t", weights, SIZES, max_words=8, frozen_layers=1, temporal=TemporalConfig(depth=0))


@pytest.mark.parametrize("timm", [False, True])
def test_checkpointing_gives_the_same_gradients(weights: Path, frames: Tensor, timm: bool):
    def gradients(**settings: Any) -> dict[str, Tensor]:
        vision = VisionConfig(TIMM, TIMM_SIZES) if timm else None
        model = build(weights, vision=vision, **settings).train()
        model(CAPTIONS, frames).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(), gradients(grad_checkpointing=True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        close(checkpointed[name], gradient, 1e-6)
    towers = build(weights, grad_checkpointing=True)
    assert towers.vision.visual.transformer.grad_checkpointing  # type: ignore[union-attr]
    assert towers.text.transformer.grad_checkpointing  # type: ignore[union-attr]


def test_timm_s_tower_with_clip_s_weights_is_open_clip_s(clip: Any, weights: Path, frames: Tensor, tmp_path: Path):
    model = XCLIP.from_timm(TIMM, weights, SIZES, vision_kwargs=TIMM_SIZES, max_words=8, temporal=TemporalConfig(0))
    model.eval()
    close(model.vision(frames[0]), clip.encode_image(pixels(frames[0])))
    assert model.vision.size == 32
    names = {name for name, _ in model.named_parameters()}
    assert model.tower_parameters() == {n for n in names if n.startswith(("vision.", "text."))} | {
        "recipe.loss.criterion.logit_scale"
    }
    model.save_pretrained(tmp_path)
    assert torch.equal(XCLIP.from_pretrained(tmp_path).vision(frames[0]), model.vision(frames[0]))
    plain = TIMM.replace("quickgelu_", "")
    with pytest.raises(ValueError, match=f"vision name: {plain} has another activation.*; expected {TIMM}"):
        XCLIP.from_timm(plain, weights, SIZES, vision_kwargs=TIMM_SIZES)
    with pytest.raises(ValueError, match=r"vision: a checkpoint of another architecture: 12 unexpected \(backbone"):
        XCLIP.from_timm(TIMM, weights, SIZES, vision_kwargs={**TIMM_SIZES, "depth": 2}, max_words=8)


def test_another_tower_of_timm_gets_a_projection_of_its_own(weights: Path, frames: Tensor, tmp_path: Path):
    model = XCLIP.from_timm("resnet10t", weights, SIZES, max_words=8, temporal=TemporalConfig(depth=1)).eval()
    assert model.encode_video(frames)["video"].features.shape == (2, 16)
    assert model.vision.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # type: ignore[union-attr]
    assert "vision.projection.weight" not in model.tower_parameters()
    assert not [name for name in model.tower_parameters() if name.startswith("vision.")]  # random numbers at first
    model.save_pretrained(tmp_path)
    assert torch.equal(XCLIP.from_pretrained(tmp_path).vision(frames[0]), model.vision(frames[0]))


@pytest.mark.parametrize(
    "temporal", [TemporalConfig(kind="none"), TemporalConfig(depth=2), TemporalConfig(kind="lstm")]
)
@pytest.mark.parametrize("mixing", [False, True])
def test_a_saved_model_needs_no_other_file(
    weights: Path, frames: Tensor, tmp_path: Path, temporal: TemporalConfig, mixing: bool
):
    model = build(weights, temporal=temporal, mixing=mixing, masked=not mixing, frozen_layers=1)
    model.save_pretrained(tmp_path)
    loaded = XCLIP.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["model"]["clip"]["weights"] is None
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        assert torch.equal(loaded(CAPTIONS, frames, mask), model(CAPTIONS, frames, mask))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_the_temporal_transformer_starts_from_the_text_s_first_layers(clip: Any, weights: Path):
    temporal = build(weights).temporal
    assert isinstance(temporal, nn.Module)
    theirs = clip.transformer.resblocks[1]
    assert torch.equal(temporal.transformer.blocks[1].qkv.weight, theirs.attn.in_proj_weight)
    assert torch.equal(temporal.transformer.blocks[1].mlp[2].bias, theirs.mlp.c_proj.bias)
    assert torch.equal(temporal.position, clip.positional_embedding)
    x = torch.randn(2, 5, 16)
    inside = clip.transformer.resblocks[1](clip.transformer.resblocks[0](x + clip.positional_embedding[:5]))
    temporal.max_frames = 5
    close(temporal(x), x + inside, 1e-4)  # the norms' eps differs


def test_half_precision_on_the_way_changes_little(weights: Path, frames: Tensor):
    model = build(weights, mixing=True)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = model(CAPTIONS, frames, mask)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(CAPTIONS, frames, mask)
    assert loss.dtype == torch.float32
    close(loss, expected, 0.05)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_config_builds_it_from_yaml_s_values(weights: Path, frames: Tensor):
    config = ModelConfig(
        clip=ClipConfig(str(weights), SIZES, max_words=14, frozen_layers=1),
        temporal=TemporalConfig(depth=2, max_frames=6),
        dropout=0.0,
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    timm = dataclasses.replace(config, clip=ClipConfig("x.pt", vision=VisionConfig("vit", {"depth": 1})))
    assert ModelConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(timm)))) == timm
    model = XCLIP.from_config(config).eval()
    assert (model.max_words, model.max_frames, model.vision.size) == (14, 6, 32)
    assert model.config is not None
    assert model.config.dim == 16
    again = XCLIP.from_clip(weights, SIZES, max_words=14, max_frames=6, temporal=TemporalConfig(2), frozen_layers=1)
    assert again.config == model.config
    assert torch.equal(again.eval()(CAPTIONS, frames), model(CAPTIONS, frames))
    assert isinstance(model.vision, ClipVision)
    assert isinstance(model.text, ClipText)


def test_words_cannot_be_left_out_without_masks():
    with pytest.raises(ValueError, match="masked: expected True where include_bos or include_eos is False"):
        ModelConfig(clip=ClipConfig(include_bos=False), masked=False)
    with pytest.raises(ValueError, match="frozen_layers: expected an integer of at least 0, got -1"):
        ClipConfig(frozen_layers=-1)
    with pytest.raises(ValueError, match="max_words: expected at least 2"):
        ClipConfig(max_words=1)


def full_size_clip(name: str) -> Any:
    """Random numbers that half precision holds, without the seconds that open_clip's own initialisation takes."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name)).eval()
    noise = (0.02 * torch.randn(1 << 25)).half().float()
    state = {
        key: noise[i : i + v.numel()].view(v.shape).clone() for i, (key, v) in enumerate(model.state_dict().items())
    }
    state = {key: value + 1 if "ln_" in key and key.endswith("weight") else value for key, value in state.items()}
    model.load_state_dict({key: value.half().float() for key, value in state.items()}, assign=True)
    model.attn_mask = torch.full((77, 77), float("-inf")).triu_(1)
    return model


def test_full_size_archive_equals_open_clip_and_timm(tmp_path: Path):
    name, text = "ViT-B-32-quickgelu", ["a photo of a dog", "the man, who sings!"]
    theirs = full_size_clip(name)
    archive = torchscript(theirs.state_dict(), tmp_path / "ViT-B-32.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = XCLIP.from_clip(archive).eval()
        other = XCLIP.from_timm("vit_base_patch32_clip_quickgelu_224", archive, name).vision
    archive.unlink()
    frames = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        image, sentence = theirs.encode_image(pixels(frames)), theirs.encode_text(open_clip.SimpleTokenizer()(text))
        close(model.vision(frames), image, 1e-4)
        close(other(frames), image, 1e-4)
        ours, words, mask = model.text(text)
    assert image.abs().mean() > 0.1
    assert (sentence[0] - sentence[1]).abs().mean() > 0.01
    close(ours, sentence, 1e-4)
    close(words[range(2), mask.sum(1) - 1], sentence, 1e-4)
    assert (model.vision.size, model.vision.dim, len(model.temporal.transformer.blocks)) == (224, 512, 4)  # type: ignore[union-attr]
