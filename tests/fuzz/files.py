"""Mutated models, features, checkpoints, settings and lists: loaded as they were, or refused in a line."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import multigrain as mg
from multigrain import training
from multigrain.data.babyai import cache as babyai_cache
from multigrain.data.manifest import load_manifest
from multigrain.gallery.collection import Collection
from multigrain.models import XCLIP, ModelConfig, TemporalConfig, TextConfig, VisionConfig
from multigrain.training import checkpoint
from tests.models.clips import saved, sizes, tiny_clip, torchscript

from .mutate import mutate

_REASON = 500  # letters of a message beyond the path
SMALL = {"text_cfg": {"vocab_size": 100}}  # so that much of a file is what describes its tensors


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        make: writes one into a folder.
        load: from the folder.
        changing: names of the parts whose mutations may load as something else: text without a checksum, and
            tensors of other programs.
        errors: what a bad file may raise.
    """

    make: Callable[[Path], object]
    load: Callable[[Path], Any]
    changing: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = (ValueError, OSError)


def features(folder: Path) -> None:
    """Two grains, one of them with a mask."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    mg.Features(video=torch.rand(3, 4), frame=(torch.rand(3, 2, 4), mask)).save(folder / "features.pt")


def model(folder: Path) -> None:
    """A tiny model with a vocabulary of its own."""
    torch.manual_seed(0)
    vision = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = ModelConfig(
        vision=VisionConfig("vit_tiny_patch16_224", vision),
        text=TextConfig(width=8, depth=1, heads=1, max_words=8),
        temporal=TemporalConfig(depth=1, heads=1, max_frames=4),
        dim=8,
    )
    XCLIP.from_config(config, ["a", "ball", "red"]).save_pretrained(folder)


SETTINGS = {"seed": 1, "stages": [{"name": "one", "epochs": 2}]}


def checkpoints(folder: Path) -> None:
    """The state of a training."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    state = {"settings": json.dumps(SETTINGS), "position": [0, 1, 2], "model": layer.state_dict()}
    checkpoint.save_checkpoint(folder / "checkpoint.pt", {**state, "optimizer": optimizer.state_dict()})


def collection(folder: Path) -> None:
    """Three videos in two shards, and a broken one."""
    torch.manual_seed(0)
    made = Collection.start(folder, {"model": "m", "sampling": {"fps": 1.0}}, resume=True)
    for videos in (["/a.mp4", "/b.mp4"], ["/c.mp4"]):
        found = mg.Features(video=torch.rand(len(videos), 4), frame=torch.rand(len(videos), 2, 4))
        made.append(found, videos, {"/d.mp4": "no such file"} if len(videos) == 1 else {})
    made.finish()


def load_collection(folder: Path) -> Any:
    """Everything that a search reads."""
    found = Collection.open(folder)
    return found.videos, found.broken, [found.load(shard) for shard in found.shards if shard.file is not None]


def babyai(folder: Path) -> None:
    """A shard of generated pairs."""
    rng = np.random.default_rng(0)
    lengths = np.full(babyai_cache.SHARD, 2)
    observations = rng.integers(0, 3, (int(lengths.sum()), 7, 7, 3)).astype(np.uint8)
    sentences = [f"go to the ball {i}" for i in range(babyai_cache.SHARD)]
    shard = babyai_cache.RolloutShard(sentences, lengths, observations, babyai_cache.Counter({"too long": 3}))
    babyai_cache.write_shard(folder / "many-00000.npz", shard)


def metrics(folder: Path) -> None:
    """The log of a training."""
    log = checkpoint.MetricsLog(folder / "metrics.jsonl")
    for step in range(5):
        values = {"kind": "step", "stage": "one", "epoch": 1, "epochs": 2, "step": step, "steps": 5}
        log.write(checkpoint.Position(0, 0, step), {**values, "loss": 1.5, "seconds": 2.0})


def manifest(folder: Path) -> None:
    """A list of clips."""
    clips = [{"video": f"{i}.mp4", "captions": [f"a cat {i}", "ein Kätzchen"], "split": "train"} for i in range(30)]
    clips[7] |= {"start": 1.5, "end": 9, "id": "seven"}
    lines = [json.dumps(clip, ensure_ascii=i % 2 == 0) + "\n" for i, clip in enumerate(clips)]
    (folder / "clips.jsonl").write_text("".join(lines), encoding="utf-8")


def clip_state() -> dict[str, Tensor]:
    """Of a tiny CLIP."""
    return tiny_clip(**SMALL).state_dict()


def load_clip(path: Path, architecture: Any = None) -> XCLIP:
    """A model of a CLIP's weights; what is not in the file starts from the same numbers each time."""
    torch.manual_seed(0)
    return XCLIP.from_clip(path, architecture, max_words=8, temporal=TemporalConfig(depth=2))


KINDS: dict[str, Kind] = {
    "features": Kind(features, lambda folder: mg.Features.load(folder / "features.pt")),
    "model": Kind(model, XCLIP.from_pretrained, ("config.json",)),
    "checkpoint": Kind(checkpoints, lambda folder: checkpoint.load_checkpoint(folder / "checkpoint.pt", SETTINGS)),
    "collection": Kind(collection, load_collection, ("manifest.jsonl", "broken.txt")),
    "archive": Kind(
        lambda folder: torchscript(clip_state(), folder / "clip.pt"),
        lambda folder: load_clip(folder / "clip.pt"),
    ),
    "state": Kind(
        lambda folder: saved(tiny_clip(**SMALL), folder / "clip.pt"),
        lambda folder: load_clip(folder / "clip.pt", sizes(**SMALL)),
    ),
    "safetensors": Kind(
        lambda folder: save_file(clip_state(), folder / "clip.safetensors"),
        lambda folder: load_clip(folder / "clip.safetensors", sizes(**SMALL)),
        ("clip.safetensors",),
    ),
    "config": Kind(
        lambda folder: shutil.copy(Path(mg.__file__).parent / "configs" / "demo.yaml", folder / "config.yaml"),
        lambda folder: dataclasses.asdict(training.load_config(folder / "config.yaml")),
        ("config.yaml",),
    ),
    "babyai": Kind(babyai, lambda folder: babyai_cache.read_shard(folder / "many-00000.npz")._asdict()),
    "metrics": Kind(
        metrics, lambda folder: checkpoint.MetricsLog(folder / "metrics.jsonl").read(), ("metrics.jsonl",), errors=()
    ),
    "manifest": Kind(
        manifest,
        lambda folder: [vars(clip) | {"video": clip.video.name} for clip in load_manifest(folder / "clips.jsonl")],
        ("clips.jsonl",),
    ),
}


@dataclass(frozen=True)
class Files:
    """Cases by number: kind, part and mutation follow from it alone.

    Args:
        root: a folder with the seed of each kind below its name, and for the mutated ones.
        loaded: what each seed loads as.
        seed: of all cases.
    """

    root: Path
    loaded: Mapping[str, Any]
    seed: int = 0

    def case(self, number: int) -> tuple[str, bytes, str]:
        """Name of the file, its content, and its kind."""
        rng = random.Random(f"{self.seed}:file:{number}")
        kind = list(KINDS)[number % len(KINDS)]
        parts = sorted(path for path in (self.root / kind).rglob("*") if path.is_file())
        part = rng.choice(parts)
        content = part.read_bytes()
        return part.relative_to(self.root / kind).as_posix(), mutate(content, rng.choice(parts).read_bytes(), rng), kind

    def __call__(self, number: int) -> str:
        """Load a case: how it ended; what is neither the same nor refused in a line is raised."""
        name, content, kind = self.case(number)
        folder = self.root / f"case-{number}"
        shutil.copytree(self.root / kind, folder)
        (folder / name).write_bytes(content)
        outcome = self.judge(folder, KINDS[kind], self.loaded[kind], name)
        shutil.rmtree(folder)
        return outcome

    @staticmethod
    def judge(folder: Path, kind: Kind, expected: Any, name: str) -> str:
        """How loading ends, where this part is mutated."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = _plain(kind.load(folder))
        except kind.errors as error:
            message = str(error).replace(str(folder), "")
            if not message or "\n" in message or len(message) >= _REASON:
                raise AssertionError(f"expected a line of less than {_REASON} letters, got {message!r}") from error
            return "refused"
        if _same(got, expected):
            return "the same"
        assert name in kind.changing, f"{name} was damaged, and loads as something else"
        return "other values"


def seeds(root: Path, seed: int = 0) -> Files:
    """A whole file of each kind, below root."""
    for name, kind in KINDS.items():
        (root / name).mkdir(parents=True)
        kind.make(root / name)
        for lock in (root / name).rglob(".lock"):
            lock.unlink()
    return Files(root, {name: _plain(kind.load(root / name)) for name, kind in KINDS.items()}, seed)


def _plain(value: Any) -> Any:
    """Models and features as tensors by name."""
    if isinstance(value, nn.Module):
        return value.state_dict()
    if isinstance(value, mg.Features):
        return {name: (value[name].features, value[name].mask) for name in value.names}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _same(one: Any, other: Any) -> bool:
    """Whether two loaded things are equal, tensors to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
