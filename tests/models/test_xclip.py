from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path, PurePath

import pytest
import torch
from torch import Tensor

import multigrain as mg
from multigrain import files
from multigrain.models import (
    XCLIP,
    FeatureTower,
    GrainConfig,
    ModelConfig,
    TemporalConfig,
    TemporalLSTM,
    TextConfig,
    VisionConfig,
)
from multigrain.models.config import build_from_spec

CONFIG = ModelConfig(
    vision=VisionConfig(
        "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    ),
    text=TextConfig(width=16, depth=1, heads=2, max_words=8),
    temporal=TemporalConfig(depth=1, heads=2, max_frames=4),
    dim=8,
)
WORDS = ["a", "ball", "blue", "box", "go", "red", "the", "to"]
SENTENCES = ["go to the red ball", "a blue box"]


def build(**changes: object) -> XCLIP:
    torch.manual_seed(0)
    return XCLIP.from_config(dataclasses.replace(CONFIG, **changes), WORDS).eval()  # type: ignore[arg-type]


@pytest.fixture
def video() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(2, 4, 3, 16, 16), torch.tensor([[True] * 4, [True, True, False, False]])


def values(features: mg.Features) -> list[Tensor]:
    return [features[name].normalized().features for name in features.names]


def test_encoders_give_the_four_grains(video: tuple[Tensor, Tensor]):
    model = build()
    text, clips = model.encode_text(SENTENCES), model.encode_video(*video)
    assert text["sentence"].features.shape == (2, 8)
    assert text["word"].features.shape == (2, 5, 8)
    assert clips["video"].features.shape == (2, 8)
    assert clips["frame"].features.shape == (2, 4, 8)
    assert text["word"].mask is not None
    assert text["word"].mask.sum(1).tolist() == [5, 3]
    assert torch.equal(clips["frame"].mask, video[1])  # type: ignore[arg-type]
    assert model.scorer(text, clips).shape == (2, 2)
    assert list(model.scorer.scores_by_grain(text, clips)) == [
        "sentence-video",
        "word-video",
        "sentence-frame",
        "word-frame",
    ]
    assert isinstance(model.logit_scale, torch.nn.Parameter)


@pytest.mark.parametrize("frame_source", ["raw", "temporal"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padded_frames_change_no_score_and_no_gradient(video: tuple[Tensor, Tensor], poison: float, frame_source: str):
    model, (frames, mask) = build(frame_source=frame_source), video

    def run(frames: Tensor, mask: Tensor) -> list[Tensor]:
        model.zero_grad()
        features = model.encode_video(frames, mask)
        scores = model.scorer(model.encode_text(SENTENCES), features)
        scores.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [scores.detach(), *grads]

    poisoned = torch.where(mask[:, :, None, None, None], frames, poison)
    longer = torch.cat([poisoned, torch.full_like(frames[:, :1], poison)], 1)[:, [0, 1, 2, 3]]
    for expected, got in zip(run(frames, mask), run(longer, mask), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    alone = model.encode_video(frames[1:, :2])
    torch.testing.assert_close(values(model.encode_video(poisoned, mask)[1])[0], values(alone)[0])


def test_a_video_does_not_depend_on_its_batch_or_its_padding(video: tuple[Tensor, Tensor]):
    model, (frames, mask) = build(), video
    together, alone = model.encode_video(frames, mask), model.encode_video(frames[1:, :2])
    torch.testing.assert_close(together["video"].features[1], alone["video"].features[0])
    torch.testing.assert_close(together["frame"].features[1, :2], alone["frame"].features[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"frames": torch.ones(2, 4, 3, 16, 16).bool()}, TypeError, "frames: expected floating .* got torch.bool"),
        ({"frames": torch.ones(2, 4, 3, 16, 16).cfloat()}, TypeError, "frames: .* got torch.complex64"),
        ({"frames": torch.ones(2, 4, 3, 16, 16).long()}, TypeError, "frames: .* got torch.int64"),
        ({"frames": torch.full((2, 4, 3, 16, 16), torch.nan)}, ValueError, r"frames: expected .* in \[0, 1\].* nan"),
        ({"frames": torch.full((2, 4, 3, 16, 16), -torch.inf)}, ValueError, "frames: expected .* -inf"),
        ({"index": torch.tensor([[0, 1], [2, -1]])}, ValueError, "index: expected .* 0 to 7, got -1 at position 3"),
        ({"index": torch.tensor([[0, 1], [2, 8]])}, ValueError, "index: expected .* 0 to 7, got 8 at position 3"),
        ({"index": torch.zeros(2, 2)}, TypeError, "index: expected whole numbers, got torch.float32"),
        ({"mask": torch.ones(2, 4)}, TypeError, "mask: expected dtype torch.bool .* got torch.float32"),
    ],
)
def test_frames_that_cannot_be_meant_are_named(changes: dict[str, Tensor], error: type[Exception], message: str):
    given = {"frames": torch.rand(2, 4, 3, 16, 16), **changes}
    if "index" in given:
        given["frames"] = given["frames"].flatten(0, 1)
    with pytest.raises(error, match=message):
        build().encode_video(**given)


def test_an_index_behind_the_mask_is_not_read(video: tuple[Tensor, Tensor]):
    frames, mask = video[0].flatten(0, 1), torch.tensor([[True, True], [True, False]])
    good, junk = (build().encode_video(frames, mask, torch.tensor([[0, 1], [2, i]])) for i in (0, -7))
    assert all(torch.equal(a, b) for a, b in zip(values(good), values(junk), strict=True))


def test_distinct_frames_with_an_index_are_the_same_video(video: tuple[Tensor, Tensor]):
    model, (frames, mask) = build(), video
    distinct = frames[0, [0, 1, 2]]
    index = torch.tensor([[0, 1, 1, 2], [2, 0, 1, 1]])
    whole = model.encode_video(distinct[index], mask)
    for expected, got in zip(values(whole), values(model.encode_video(distinct, mask, index)), strict=True):
        torch.testing.assert_close(got, expected)


def test_only_frames_that_are_used_are_encoded(video: tuple[Tensor, Tensor]):
    model, (frames, mask) = build(), video
    seen: list[int] = []
    model.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))  # type: ignore[union-attr]
    model.encode_video(frames, mask)
    assert seen == [6]


def test_frame_source_chooses_the_frames_and_leaves_the_video(video: tuple[Tensor, Tensor]):
    raw, temporal = build(), build(frame_source="temporal")
    a, b = raw.encode_video(*video), temporal.encode_video(*video)
    torch.testing.assert_close(a["video"].features, b["video"].features)
    assert not torch.allclose(a["frame"].features, b["frame"].features)
    torch.testing.assert_close(a["frame"].features[0], raw.vision(video[0][0]))


def test_without_a_temporal_encoder_the_video_is_the_mean_of_the_unit_frames(video: tuple[Tensor, Tensor]):
    model = build(temporal=TemporalConfig(depth=0))
    assert model.temporal is None
    features = model.encode_video(*video)
    unit = torch.nn.functional.normalize(features["frame"].features[1, :2], dim=-1)
    torch.testing.assert_close(features["video"].features[1], unit.mean(0))


def test_unmasked_lets_padding_into_the_fine_grains_alone(video: tuple[Tensor, Tensor]):
    masked, unmasked = build(), build(masked=False)
    a, b = masked.encode_video(*video), unmasked.encode_video(*video)
    torch.testing.assert_close(a["video"].features, b["video"].features)
    text = unmasked.encode_text(SENTENCES)
    assert text["word"].mask is None
    assert b["frame"].mask is None
    assert text["word"].length == CONFIG.text.max_words
    first, second = (
        masked.scorer.scores_by_grain(masked.encode_text(SENTENCES), a),
        unmasked.scorer.scores_by_grain(text, b),
    )
    torch.testing.assert_close(first["sentence-video"], second["sentence-video"])
    assert not torch.allclose(first["word-frame"], second["word-frame"])


def test_forward_is_the_loss_of_the_scores(video: tuple[Tensor, Tensor]):
    model = build()
    scores = model.scorer(model.encode_text(SENTENCES), model.encode_video(*video))
    ids = torch.tensor([3, 3])
    torch.testing.assert_close(model(SENTENCES, *video), model.criterion(scores))
    torch.testing.assert_close(model(SENTENCES, *video, ids=ids), model.criterion(scores, ids))


@pytest.mark.parametrize("masked", [True, False])
def test_features_that_were_computed_before_take_the_towers_place(video: tuple[Tensor, Tensor], masked: bool):
    model = build(masked=masked)
    cached = XCLIP(
        FeatureTower(8), FeatureTower(8, 8), model.recipe, model.criterion, masked=masked, max_frames=4
    ).eval()
    text = model.text(SENTENCES)
    frames = model.vision(video[0].flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(cached(text, frames), model(SENTENCES, video[0]))
    index = torch.tensor([[0, 3, 1, 2], [2, 0, 1, 1]])
    torch.testing.assert_close(
        cached.encode_video(frames[0], video[1], index)["video"].features,
        cached.encode_video(frames[0][index], video[1])["video"].features,
    )
    if masked:
        torch.testing.assert_close(cached(text, frames, video[1]), model(SENTENCES, *video))
    assert (cached.max_words, cached.max_frames, cached.vision.size) == (8, 4, 0)
    assert cached.tower_parameters() == set()
    with pytest.raises(ValueError, match="features: expected width 8, got 7"):
        cached.encode_video(frames[..., :7])
    with pytest.raises(ValueError, match=r"frames: expected shape \[B, N, D\].*, got \[2, 4, 3, 16, 16\]"):
        cached.encode_video(video[0])
    with pytest.raises(TypeError, match="expected features that were computed before, got the text 'a ball'"):
        cached.text.words("a ball")
    with pytest.raises(ValueError, match="expected a model made by a method of XCLIP"):
        cached.save_pretrained("nowhere")


def test_an_lstm_may_be_the_temporal_encoder(video: tuple[Tensor, Tensor], tmp_path: Path):
    model = build(temporal=TemporalConfig(kind="lstm", max_frames=4))
    assert isinstance(model.temporal, TemporalLSTM)
    model.save_pretrained(tmp_path)
    assert torch.equal(XCLIP.from_pretrained(tmp_path)(SENTENCES, *video), model(SENTENCES, *video))


def test_without_masks_the_content_of_padding_does_not_matter(video: tuple[Tensor, Tensor]):
    model, (frames, mask) = build(masked=False), video
    spoiled = torch.where(mask[:, :, None, None, None], frames, float("nan"))
    grey = torch.where(mask[:, :, None, None, None], frames, 0.5)
    raw = model.vision(grey.flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(model.encode_video(spoiled, mask)["frame"].features, raw)


def test_a_model_from_scratch_needs_its_words():
    with pytest.raises(ValueError, match="vocabulary: expected the words of the text tower"):
        XCLIP.from_config(CONFIG)
    model = build()
    assert (model.max_words, model.max_frames, model.vision.size) == (8, 4, 16)
    assert model.tower_parameters() == set()


def test_weights_of_timm_are_not_looked_for_again(tmp_path: Path):
    seen = ModelConfig.from_dict(dataclasses.asdict(CONFIG))
    seen.vision.kwargs["pretrained"] = False
    model = XCLIP.from_config(seen, WORDS)
    assert model.config is not None
    assert "pretrained" not in model.config.vision.kwargs


def test_a_tiny_batch_can_be_learned_by_heart(video: tuple[Tensor, Tensor]):
    model = build(dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(SENTENCES, *video)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    scores = model.eval().scorer(model.encode_text(SENTENCES), model.encode_video(*video))
    assert scores.argmax(1).tolist() == [0, 1]


def test_save_and_load_round_trip(tmp_path: Path, video: tuple[Tensor, Tensor]):
    grains = [GrainConfig("sentence", "video", bilinear=True), GrainConfig("word", "frame", "max_max")]
    model = build(grains=grains, weights=[0.25, 0.75], frame_source="temporal")
    model.save_pretrained(tmp_path / "model")
    loaded = XCLIP.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    for a, b in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    assert torch.equal(model(SENTENCES, *video), loaded(SENTENCES, *video))


def vouch(folder: Path) -> None:
    """Let the settings of a model vouch for weights that were not written with them."""
    settings = json.loads((folder / "config.json").read_text())
    settings["sha256"]["model.safetensors"] = files.digest(folder / "model.safetensors")
    files.write_json(folder / "config.json", settings)


def test_parts_of_two_models_are_refused(tmp_path: Path):
    """Whatever was written when a save over another model was killed; the words may be the same in another order."""
    first, second = XCLIP.from_config(CONFIG, ["red", "blue"]), XCLIP.from_config(CONFIG, ["blue", "red"])
    first.save_pretrained(tmp_path / "mixed")
    second.save_pretrained(tmp_path / "second")
    second.save_pretrained(tmp_path / "mixed")
    assert torch.equal(XCLIP.from_pretrained(tmp_path / "mixed").text.embedding.weight, second.text.embedding.weight)
    first.save_pretrained(tmp_path / "first")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "first" / name, tmp_path / "mixed" / name)
        if name == "config.json":
            with pytest.raises(ValueError, match=r"model\.safetensors: damaged, or another file than was written"):
                XCLIP.from_pretrained(tmp_path / "mixed")
    (tmp_path / "mixed" / "tokenizer").mkdir()
    XCLIP.from_pretrained(tmp_path / "mixed")
    (tmp_path / "mixed" / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json: expected digests \(sha256\).* save the model again"):
        XCLIP.from_pretrained(tmp_path / "mixed")
    second.save_pretrained(tmp_path / "mixed")  # takes away what is not its own
    XCLIP.from_pretrained(tmp_path / "mixed")
    settings = json.loads((tmp_path / "mixed" / "config.json").read_text())
    del settings["sha256"]
    files.write_json(tmp_path / "mixed" / "config.json", settings)
    with pytest.raises(ValueError, match="expected digests"):
        XCLIP.from_pretrained(tmp_path / "mixed")


def test_damaged_or_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        XCLIP.from_pretrained(tmp_path)
    build().save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged, or another file than was written"):
        XCLIP.from_pretrained(tmp_path)
    vouch(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights"):
        XCLIP.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    vouch(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["model"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json: not the settings.*colour"):
        XCLIP.from_pretrained(tmp_path)


def test_weights_of_another_model_are_named(tmp_path: Path):
    build().save_pretrained(tmp_path)
    (tmp_path / "other").mkdir()
    build(temporal=TemporalConfig(depth=0), dim=4).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    vouch(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: a checkpoint of another.*13 missing .*2 other shapes"):
        XCLIP.from_pretrained(tmp_path)


def test_a_repository_of_the_hub_is_fetched_where_it_is_asked_for_and_brings_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    model = build()
    model.save_pretrained(tmp_path)
    asked: list[str] = []
    patterns: list[str] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        patterns[:] = allow_patterns
        if repository == "owner/nothing":
            raise OSError("404\nnot found")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert torch.equal(XCLIP.from_pretrained("hub:owner/model").logit_scale, model.logit_scale)
    with pytest.raises(FileNotFoundError, match=r"no repository owner/nothing on the Hugging Face Hub: 404$"):
        XCLIP.from_pretrained("hub:owner/nothing")
    assert any(PurePath("tokenizer/merges.txt").match(pattern) for pattern in patterns)
    assert not any(PurePath(name).match(pattern) for name in ("a.py", "tokenizer/a.py") for pattern in patterns)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing in owner/model"):
        XCLIP.from_pretrained("owner/model")  # a folder that is not there is not looked for on the Hub
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing in /no/such/folder"):
        XCLIP.from_pretrained("/no/such/folder")
    assert asked == ["owner/model", "owner/nothing"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        XCLIP.from_pretrained("hub:owner/model")


def test_shapes_that_do_not_fit_are_named(video: tuple[Tensor, Tensor]):
    model, (frames, mask) = build(), video
    with pytest.raises(ValueError, match=r"frames: expected shape \[B, N, 3, H, W\].*got \[4, 3, 16, 16\]"):
        model.encode_video(frames[0])
    with pytest.raises(ValueError, match=r"mask: expected shape \[2, 4\], got \[2, 3\]"):
        model.encode_video(frames, mask[:, :3])
    with pytest.raises(ValueError, match="frames: expected at most 4 frames"):
        model.encode_video(frames[:, [0, 1, 2, 3, 3]])
    with pytest.raises(ValueError, match="frame_source: expected one of raw, temporal; got 'cooked'"):
        build(frame_source="cooked")


def test_aggregators_come_from_names_and_class_paths():
    assert isinstance(build_from_spec("mean_max"), mg.MeanMax)
    aosm = build_from_spec({"class_path": "multigrain.AOSM", "init_args": {"temperature": 0.5}})
    assert isinstance(aosm, mg.AOSM)
    assert build_from_spec(None) is None
    with pytest.raises(ValueError, match="aosm"):
        build_from_spec("nope")
    with pytest.raises(ValueError, match=r"expected the path of a class that is imported, got 'multigrain\.Nope'"):
        build_from_spec("multigrain.Nope")
    with pytest.raises(TypeError, match=r"expected a subclass of multigrain\.Aggregator, got torch\.nn\.Linear"):
        build_from_spec("torch.nn.Linear")
    with pytest.raises(ValueError, match=r"aggregator multigrain\.AOSM: .*temprature"):
        build_from_spec({"class_path": "multigrain.AOSM", "init_args": {"temprature": 1}})
    with pytest.raises(ValueError, match="expected class_path and init_args, got init"):
        build_from_spec({"class_path": "aosm", "init": {}})


def test_grains_take_the_aggregator_of_the_model_unless_they_name_one():
    grains = [GrainConfig("sentence", "video"), GrainConfig("word", "video", "max_max"), GrainConfig("word", "frame")]
    scorer = build(grains=grains, aggregator="mean_mean").scorer
    kinds = [None if g.aggregator is None else type(g.aggregator) for g in scorer.grains]  # type: ignore[union-attr]
    assert kinds == [None, mg.MaxMax, mg.MeanMean]
