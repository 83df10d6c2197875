"""A checkpoint of the original X-CLIP code, read, scored, trained on and written, number for number."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multigrain.cli import runs
from multigrain.models import XCLIP, TemporalLSTM
from multigrain.models.clip import MEAN, STD
from multigrain.models.original import MATRICES
from tests.conftest import GOLDEN

FOLDERS = ("xclip_tiny_mean", "xclip_tiny_transf")
INPUTS = {"input_ids", "real_frames"}


class Golden:
    """What the original read, computed and saved."""

    def __init__(self, name: str, folder: Path) -> None:
        values = load_file(GOLDEN / f"{name}_checkpoint.safetensors")
        self.outputs = load_file(GOLDEN / f"{name}.safetensors")
        self.ids, self.mask = values["input_ids"], self.outputs["video_mask"]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        real = values["real_frames"] * std + mean  # the original was given normalised pixels
        self.frames = torch.zeros(*self.mask.shape, 3, 32, 32).masked_scatter(self.mask[..., None, None, None], real)
        self.state = {key: value.float() for key, value in values.items() if key not in INPUTS}
        self.path = folder / f"{name}.bin"
        torch.save(self.state, self.path)


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(request.param, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def transf(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden("xclip_tiny_transf", tmp_path_factory.mktemp("original"))


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def test_towers_logits_loss_and_gradients_are_the_original_s(golden: Golden):
    model, outputs = XCLIP.from_original(golden.path), golden.outputs
    seen: dict[str, Any] = {}
    model.text.register_forward_hook(lambda _, __, out: seen.update(text=out))  # type: ignore[union-attr]
    text = model.encode_text(golden.ids)
    sentence, words, mask = seen["text"]
    close(sentence, outputs["sentence"][:, 0], 1e-5)
    close(words, outputs["words"], 1e-5)
    assert torch.equal(mask, outputs["word_mask"])

    # The original's padded frames are images of zeros, after normalisation.
    blank = torch.tensor(MEAN).view(3, 1, 1)
    whole = torch.where(golden.mask[..., None, None, None], golden.frames, blank)
    frames = model.vision(whole.flatten(0, 1)).unflatten(0, golden.mask.shape)
    close(frames, outputs["frames"], 1e-5)

    for tensor in (sentence, words, frames):
        tensor.retain_grad()
    scores = model.scorer(text, model.video_features(frames, golden.mask))
    close(model.logit_scale.exp() * scores, outputs["logits"], 1e-4)
    loss = model.criterion(scores)
    close(loss, outputs["loss"], 1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {theirs: parameters[ours].grad for theirs, ours in MATRICES.items()}
    gradients |= {"sentence": sentence.grad[:, None], "words": words.grad, "frames": frames.grad}
    gradients["logit_scale"] = model.logit_scale.grad
    assert {f"grad.{name}" for name in gradients} == {name for name in outputs if name.startswith("grad.")}
    for name, gradient in gradients.items():
        expected = outputs[f"grad.{name}"]
        relative = (gradient - expected).abs().max() / expected.abs().max()
        assert relative < 1e-4, f"gradient of {name} is off by {relative:.1e} of its largest element"


def test_padding_of_any_content_stands_for_the_original_s_blank_frames(golden: Golden):
    model = XCLIP.from_original(golden.path)
    poisoned = torch.where(golden.mask[..., None, None, None], golden.frames, float("nan"))
    loss = model(golden.ids, poisoned, golden.mask)
    close(loss, golden.outputs["loss"], 1e-5)


def test_the_settings_are_told_from_the_tensors(golden: Golden):
    model = XCLIP.from_original(golden.path)
    assert (model.max_words, model.max_frames) == (golden.ids.shape[1], golden.mask.shape[1])
    assert model.vision.size == 32
    assert model.config is not None
    depth = 2 if "temporal.positions" in golden.outputs else 0
    assert (model.config.temporal.depth, model.temporal is not None) == (depth, depth > 0)
    assert not model.masked
    assert not model.training


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_saving_gives_the_same_tensors(golden: Golden, tmp_path: Path, suffix: str):
    path = tmp_path / f"again.{suffix}"
    XCLIP.from_original(golden.path).save_original(path)
    again = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    assert again.keys() == golden.state.keys()
    for name, value in golden.state.items():
        assert torch.equal(again[name], value), name
    assert torch.equal(XCLIP.from_original(path).logit_scale, golden.state["clip.logit_scale"])


def test_masks_change_the_scores_and_end_the_influence_of_padding(golden: Golden):
    unmasked, masked = XCLIP.from_original(golden.path), XCLIP.from_original(golden.path, masked=True)

    @torch.no_grad()
    def scores(model: XCLIP, ids: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        return model.scorer(model.encode_text(ids), model.encode_video(frames, mask))

    words, frames = int(golden.ids[2].argmax()) + 1, int(golden.mask[2].sum())
    assert words < golden.ids.shape[1]
    assert frames < golden.mask.shape[1]
    arguments = (golden.ids, golden.frames, golden.mask)
    shorter = (golden.ids[2:3, :words], golden.frames[2:3, :frames], golden.mask[2:3, :frames])
    whole = scores(masked, *arguments)
    close(scores(masked, *shorter), whole[2:3, 2:3], 1e-6)
    # Without masks, whatever the padding: the original has always max_words and max_frames.
    multiplier = golden.outputs["logit_scale"].exp()
    for mask in (golden.mask[2:3, :frames], None):
        close(multiplier * scores(unmasked, *shorter[:2], mask), golden.outputs["logits"][2:3, 2:3], 1e-4)
    assert (whole - scores(unmasked, *arguments)).abs().max() > 1e-3


def test_a_folder_of_ours_keeps_everything(golden: Golden, tmp_path: Path):
    model = XCLIP.from_original(golden.path)
    model.save_pretrained(tmp_path)
    loaded = XCLIP.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert str(golden.path) not in (tmp_path / "config.json").read_text()
    arguments = (golden.ids, golden.frames, golden.mask)
    with torch.no_grad():
        assert torch.equal(loaded(*arguments), model(*arguments))


def test_half_precision_and_the_prefix_of_data_parallel_are_read(transf: Golden, tmp_path: Path):
    path = tmp_path / "wrapped.bin"
    torch.save({f"module.{name}": value.half() for name, value in transf.state.items()}, path)
    model = XCLIP.from_original(path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    close(model(transf.ids, transf.frames, transf.mask), transf.outputs["loss"], 1e-2)


def test_the_lstm_header_is_read_and_written(transf: Golden, tmp_path: Path):
    state = {name: value for name, value in transf.state.items() if not name.startswith("transformerClip")}
    torch.manual_seed(0)
    state |= {f"lstm_visual.{name}": value.detach() for name, value in torch.nn.LSTM(64, 64).named_parameters()}
    torch.save(state, tmp_path / "lstm.bin")
    model = XCLIP.from_original(tmp_path / "lstm.bin")
    assert isinstance(model.temporal, TemporalLSTM)
    model.save_original(tmp_path / "again.bin")
    again = torch.load(tmp_path / "again.bin", weights_only=True)
    assert again.keys() == state.keys() - {"frame_position_embeddings.weight"}  # there, the original never reads it
    assert all(torch.equal(again[name], state[name]) for name in again)


def test_clip_with_mixing_starts_where_the_original_does(transf: Golden, tmp_path: Path):
    clip = {name.removeprefix("clip."): v for name, v in transf.state.items() if name.startswith("clip.")}
    save_file(clip, tmp_path / "clip.safetensors")
    model = XCLIP.from_clip(tmp_path / "clip.safetensors", "openai", max_words=12, max_frames=5, mixing=True)
    model.save_original(tmp_path / "start.safetensors")
    start = load_file(tmp_path / "start.safetensors")
    assert start.keys() - transf.state.keys() == {
        name for name in start if name.startswith(("transformerClip.resblocks.2", "transformerClip.resblocks.3"))
    }
    assert torch.equal(start["frame_position_embeddings.weight"], clip["positional_embedding"])
    for i, name in itertools.product(range(4), ("attn.in_proj_weight", "ln_2.bias", "mlp.c_proj.weight")):
        assert torch.equal(start[f"transformerClip.resblocks.{i}.{name}"], clip[f"transformer.resblocks.{i}.{name}"])
    assert all(torch.equal(start[name], torch.eye(len(start[name]))) for name in MATRICES)


def test_what_the_original_has_no_place_for_is_refused(transf: Golden, tmp_path: Path):
    clip = {name.removeprefix("clip."): v for name, v in transf.state.items() if name.startswith("clip.")}
    save_file(clip, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="save_original: expected X-CLIP's four grains with all learned matrices"):
        XCLIP.from_clip(tmp_path / "clip.safetensors", "openai").save_original(tmp_path / "no.bin")
    model = XCLIP.from_original(transf.path)
    assert model.config is not None
    assert model.config.clip is not None
    assert isinstance(model.config.clip.architecture, dict)
    model.config.clip.architecture["quick_gelu"] = False
    with pytest.raises(ValueError, match="expected CLIP as OpenAI's, got GELU"):
        model.save_original(tmp_path / "no.bin")
    assert not (tmp_path / "no.bin").exists()


def test_a_checkpoint_is_read_once(transf: Golden, monkeypatch: pytest.MonkeyPatch):
    """To tell whose it is takes names alone."""
    load, devices = torch.load, list[str]()

    def seen(path: Path, map_location: str, **options: Any) -> Any:
        devices.append(map_location)
        return load(path, map_location, **options)

    monkeypatch.setattr(torch, "load", seen)
    model = runs.load_model(transf.path)
    assert devices == ["meta", "cpu"]
    assert torch.equal(model.cpu().logit_scale, transf.state["clip.logit_scale"])


def test_other_checkpoints_are_refused_in_one_line(transf: Golden, tmp_path: Path):
    def refusal(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "other.bin")
        with pytest.raises(ValueError, match=r"other\.bin: ") as caught:
            XCLIP.from_original(tmp_path / "other.bin")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    without = {name: value for name, value in transf.state.items() if name not in MATRICES}
    assert "there is no global_mat_weight, word_logit_weight" in refusal(without)
    unclipped = {name: value for name, value in transf.state.items() if not name.startswith("clip.ln_final")}
    assert "got none of ln_final.weight" in refusal(unclipped)
    changed = {**transf.state, "cross.pooler.weight": torch.zeros(2), "local_mat_weight": torch.eye(3)}
    del changed["clip.visual.ln_post.bias"]
    message = refusal(changed)
    assert "1 missing (clip.visual.ln_post.bias)" in message
    assert "1 unexpected (cross.pooler.weight)" in message
    assert "1 other shapes (local_mat_weight is [3, 3], not [64, 64])" in message
    with pytest.raises(FileNotFoundError, match="expected a file, there is none at"):
        XCLIP.from_original(tmp_path / "nowhere.bin")
