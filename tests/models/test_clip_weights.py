"""Where CLIP's weights come from, and what is said where they do not fit."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multigrain.models import load_clip
from multigrain.models.clip.weights import build_clip
from tests.models.clips import SIZES, saved, sizes, tiny_clip, torchscript


@pytest.fixture(scope="module")
def clip() -> Any:
    """As OpenAI builds it: heads 64 wide."""
    return tiny_clip(embed_dim=32, text_cfg={"vocab_size": 60, "width": 64, "heads": 1})


def same(got: dict[str, Tensor] | None, clip: Any, tolerance: float = 0.0) -> None:
    assert got is not None
    assert got.keys() == clip.state_dict().keys()
    for name, value in clip.state_dict().items():
        torch.testing.assert_close(got[name], value, atol=tolerance, rtol=tolerance)


def error(*arguments: Any) -> str:
    with pytest.raises(ValueError, match=r"expected|another architecture|trained with") as caught:
        build_clip(load_clip(*arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")  # in open_clip
def test_openai_s_archive_tells_its_sizes_and_its_activation(clip: Any, tmp_path: Path):
    loaded = load_clip(torchscript(clip.state_dict(), tmp_path / "clip.pt"))
    same(loaded.state, clip, 1e-3)
    assert loaded.architecture == sizes(embed_dim=32, text_cfg={"vocab_size": 60, "width": 64, "heads": 1})
    assert loaded.tokenizer is None
    model = build_clip(loaded)
    frames, ids = torch.randn(2, 3, 32, 32), torch.tensor([[58, 2, 59, *[0] * 17]])
    torch.testing.assert_close(model.eval().encode_image(frames), clip.encode_image(frames), atol=1e-2, rtol=0)
    torch.testing.assert_close(model.encode_text(ids), clip.encode_text(ids), atol=1e-2, rtol=0)
    theirs = open_clip.load_openai_model(str(tmp_path / "clip.pt"), device="cpu")
    torch.testing.assert_close(model.encode_image(frames), theirs.encode_image(frames))


def test_plain_state_dicts_are_read_as_openai_s_and_say_so(clip: Any, tmp_path: Path):
    path = saved(clip, tmp_path / "clip.pt")
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    for file in (path, tmp_path / "clip.safetensors"):
        same(load_clip(file, "openai").state, clip)
        with pytest.warns(UserWarning, match=r"does not say its activation and is read as OpenAI's, .*QuickGELU"):
            assert load_clip(file).architecture["quick_gelu"]


def test_resnets_of_openai_are_read(tmp_path: Path):
    torch.manual_seed(0)
    # The vision width of a ResNet sets its heads, as in open_clip.
    text = {"vocab_size": 60, "width": 64, "heads": 1, "context_length": 20, "layers": 1}
    vision = {"layers": [1, 1, 2, 1], "width": 64, "image_size": 64, "patch_size": None}
    model = open_clip.CLIP(64, vision, text, quick_gelu=True).eval()  # type: ignore[arg-type]
    loaded = load_clip(saved(model, tmp_path / "rn.pt"), "openai")
    assert loaded.architecture["vision_cfg"] == vision
    frames = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(build_clip(loaded).eval().encode_image(frames), model.encode_image(frames))


def test_checkpoints_of_open_clip_s_training_need_their_architecture(clip: Any, tmp_path: Path):
    path = tmp_path / "epoch_1.pt"
    wrapped = {f"module.{name}": value for name, value in clip.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": wrapped}, path)
    assert 'does not say its activation: expected architecture="ViT-B-32"' in error(path)
    architecture = sizes(embed_dim=32, quick_gelu=False, text_cfg={"vocab_size": 60, "width": 64, "heads": 1})
    loaded = load_clip(path, architecture)
    same(loaded.state, clip)
    assert not loaded.architecture["quick_gelu"]


def test_another_activation_is_refused_with_the_remedy(clip: Any, tmp_path: Path):
    archive = torchscript(clip.state_dict(), tmp_path / "clip.pt")
    message = error(archive, "ViT-B-32")
    assert "was trained with QuickGELU, 'ViT-B-32' has GELU; pass architecture='ViT-B-32-quickgelu'" in message
    assert "set quick_gelu to True" in error(archive, {**SIZES, "quick_gelu": False})


def test_named_weights_bring_their_own_activation(clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = torchscript(clip.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(archive))
    for name in ("ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu"):
        loaded = load_clip(name)
        assert loaded.architecture["quick_gelu"]
        assert loaded.architecture["vision_cfg"]["width"] == 768
        assert loaded.tokenizer is not None
    assert not load_clip("laion2b_s34b_b79k", "ViT-B-32").architecture["quick_gelu"]
    message = error("laion2b_s34b_b79k", "ViT-B-32-quickgelu")
    assert "one of openai, laion400m_e31" in message
    message = error("openai", "ViT-B-32")
    assert "openai was trained with QuickGELU" in message
    assert "pass architecture='ViT-B-32-quickgelu'" in message


def test_names_and_files_that_are_not_there_are_named(tmp_path: Path):
    assert "got 'ViT-B-31'; there are ViT-B-32" in error("ViT-B-31")
    assert "got 'ViT-B-31'; there are ViT-B-32" in error(None, "ViT-B-31")
    assert "expected a file, a folder or an open_clip name" in error()
    assert "got 'zzzz'; open_clip.list_models() has them all" in error("zzzz")
    for missing in (tmp_path / "clip.pt", "runs/clip.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"weights: expected a file, there is none at {missing}"):
            load_clip(missing)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_clip(tmp_path)


def test_text_towers_of_another_kind_are_refused():
    assert "expected CLIP's own text tower, got one with custom_text" in error(None, "ViT-B-16-SigLIP")
    assert "text_cfg.hf_model_name" in error(None, "roberta-ViT-B-32")
    assert "text_cfg.hf_tokenizer_name, text_cfg.pool_type" in error(None, "ViT-H-14-worldwide")


def test_weights_of_another_architecture_are_named(clip: Any, tmp_path: Path):
    path = saved(clip, tmp_path / "clip.pt")
    message = error(path, sizes(embed_dim=32, text_cfg={"vocab_size": 61, "width": 64, "heads": 1, "layers": 4}))
    assert "12 missing (transformer.resblocks.3.attn.in_proj_bias, " in message
    assert ", ...)" in message
    assert "1 other shapes (token_embedding.weight is [60, 64], not [61, 64])" in message
    message = error(
        path, sizes(embed_dim=32, vision_cfg={"layers": 2}, text_cfg={"vocab_size": 60, "width": 64, "heads": 1})
    )
    assert "12 unexpected (visual.transformer.resblocks.2." in message
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "got none of visual.conv1.weight, text_projection" in error(tmp_path / "a.safetensors", "openai")


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path):
    torch.save({"state_dict": Touch(tmp_path / "touched")}, tmp_path / "evil.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("evil.pt", "old.bin", "junk.pt", "junk.safetensors"):
        with pytest.raises(ValueError, match=f"{name}: damaged, or no file of this kind: "):
            load_clip(tmp_path / name)
    assert "list.pt: expected a state dict, got list" in error(tmp_path / "list.pt")
    assert not (tmp_path / "touched").exists()


def test_a_missing_open_clip_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[models\]"'):
        build_clip(load_clip(None, SIZES))
