"""Every place that reads a file, over hostile files, under an audit hook: run by test_inert.py in a process of its own.

    python -m tests.inert FOLDER [WAY [NAME ...]]     prints {name: {"acts": [...], "outcome": "..."}} as JSON

An act is what a file made the process do: import a module that it names, compile or run what it holds, write, rename or
remove outside of the folder for results, start a process, contact an address. What C does unheard (torch.jit) is seen
in the files beside: nothing there may change. With WAY, a reader of WAYS that acts is put back, which must be heard.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import multigrain as mg
import multigrain.viz  # its own folders are made as it is imported
from multigrain.cli import main
from multigrain.cli.runs import load_model
from multigrain.data.annotations import SOURCES
from multigrain.data.babyai.cache import read_shard
from multigrain.data.manifest import load_manifest
from multigrain.gallery.collection import FORMAT, Collection
from multigrain.models import XCLIP, ModelConfig, TextConfig, VisionConfig, config, pretrained, state
from multigrain.training import load_config
from multigrain.training.checkpoint import MetricsLog, load_checkpoint
from tests.models.clips import sizes
from tests.models.test_torchscript import acting

EVIL = ("evil_module", "this", "antigravity")  # modules that the files name; the first lies in the working directory
SPEC = {"class_path": "evil_module.X", "init_args": {}}
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
VISION = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
CLIP = sizes(text_cfg={"vocab_size": 54})


class Hook:
    """What happens, as far as it is an act."""

    def __init__(self, folder: Path) -> None:
        self.allowed, self.folder = str(folder / "out"), str(folder)
        self.acts: list[str] | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.acts is not None and self._is_act(event, args):
            self.acts.append(f"{event} {str(args)[:200]}")

    def _is_act(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            outside = not os.path.abspath(os.fsdecode(args[0])).startswith(self.allowed) if _is_path(args[0]) else False
            return outside and bool(args[2] & WRITING) and args[0] != os.devnull
        if event in CHANGES:
            return any(_is_path(a) and not os.path.abspath(os.fsdecode(a)).startswith(self.allowed) for a in args[:2])
        if event == "import":
            return args[0].partition(".")[0] in EVIL
        if event == "pickle.find_class":
            return not args[0].startswith(("torch", "collections", "_codecs", "numpy"))
        if event == "exec":
            return args[0].co_filename.startswith(self.folder)
        if event == "compile":
            return b"evil" in bytes(str(args[0]), "utf-8") or str(args[1]).startswith(self.folder)
        if event == "ctypes.dlopen":
            return str(args[0]).startswith(self.folder)
        return event.startswith(STARTS) or event in NETWORK


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


class Evil:
    """Imports a module as it is unpickled."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("evil_module",)


def model(**settings: Any) -> XCLIP:
    config = ModelConfig(vision=VisionConfig(kwargs=VISION), text=TextConfig(16, 1, 2), dim=16, **settings)
    return XCLIP.from_config(config, ["a", "cat"])


def model_folder(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A model whose settings were changed by hand."""
    model().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    change(values["model"])
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def with_tokenizer(folder: Path) -> Path:
    """CLIP with a tokenizer that brings code, with the digests of all."""
    model_folder(folder, lambda m: m.update(clip={"architecture": CLIP}))
    (folder / "tokenizer").mkdir()
    texts = {
        "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}, **SPEC}),
        "tokenizer.json": "{}",
        "evil.py": Path("evil_module.py").read_text(),
        "config.json": json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.X"}}),
    }
    values = json.loads((folder / "config.json").read_text())
    for name, text in texts.items():
        (folder / "tokenizer" / name).write_text(text)
        values["sha256"][f"tokenizer/{name}"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def transformers_folder(folder: Path) -> Path:
    """A CLIPModel that names code, kernels and an adapter elsewhere."""
    folder.mkdir()
    names = {"auto_map": {"AutoModel": "evil.X"}, "quantization_config": {"quant_method": "evil_module"}, **SPEC}
    values = {"model_type": "clip", "attn_implementation": "evil/kernels", "text_config": names, **names}
    (folder / "config.json").write_text(json.dumps(values))
    adapter = {"base_model_name_or_path": "evil/model", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "evil.py").write_text(Path("evil_module.py").read_text())
    pickled(folder / "pytorch_model.bin")
    return folder


def pickled(path: Path, value: Any = None) -> Path:
    torch.save({"text": value or Evil()}, path)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def features(folder: Path) -> Path:
    """A collection that names a model elsewhere and whose shard is a pickle."""
    shard = pickled(written(folder / "shard-00000.pt", b""))
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    settings = {"format": FORMAT, "model": SPEC, "model_path": str(Path("agg").resolve())}
    line = {"file": shard.name, "videos": ["a.mp4"], "broken": {}, "sha256": digest}
    written(folder / "manifest.jsonl", json.dumps(settings) + "\n" + json.dumps(line) + '\n{"videos": 1}\n')
    return folder


def run_folder(folder: Path, **data: Any) -> Path:
    """The folder of a run, of which every file is hostile."""
    stages = [{"name": "[/x]\x1b[31m"}]
    written(folder / "config.json", json.dumps({"data": data, "model": {"aggregator": "mean_max"}, "stages": stages}))
    model_folder(folder / "model", lambda m: m.update(aggregator=SPEC))
    pickled(folder / "checkpoint.pt")
    written(folder / "metrics.jsonl", '{"position": [0, 0, 1], "stage": "\\u001b[31m"}\n[[' + "[" * 5000 + "\n\xff\n")
    return folder


def objects(path: Path) -> Path:
    np.savez(path, sentences=np.array([Evil()], object), lengths=np.array([Evil()], object))
    return path


def manifest(path: Path) -> Path:
    clip = {"video": "../../etc/passwd\x1b]0;x", "captions": ["!!python/name:evil_module.X"], "split": "train"}
    return written(path, json.dumps(clip) + "\n" + json.dumps({**clip, "split": "test", "id": "b"}) + "\n")


def msvd(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        written(folder / f"{split}_list.txt", "a\n")
    written(folder / "raw-captions.pkl", pickle.dumps({"a": Evil()}))
    return folder


def saved(path: Path) -> str:
    mg.Features(sentence=torch.randn(2, 4), word=torch.randn(2, 3, 4), video=torch.randn(2, 4)).save(path)
    return str(path)


TAGS = "model: !!python/object/apply:os.system ['touch owned']\nstages: [{name: a}]\n"
SPECS = {"recipe": {"name": "drl", "settings": {"x": SPEC}}, "vision": {"name": "a", "kwargs": {"x": SPEC}}}
STAGES = {"stages": [{"name": "a"}]}
GRAIN = {"query": "word", "candidate": "frame", "aggregator": "this.s"}
LAUGHS = "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)}, ' * 9}]\n" for i in range(9))
CONFIGS = {
    "tags": TAGS,
    "a class": yaml.dump({"model": {"aggregator": SPEC}, **STAGES}),
    "a class in a grain": yaml.dump({"model": {"grains": [GRAIN]}, **STAGES}),
    "classes everywhere": yaml.dump({"model": SPECS, **STAGES}),
    "a class for settings": yaml.dump({"model": SPEC, "stages": [SPEC], "data": SPEC}),
    "JSON": json.dumps({"model": {"aggregator": SPEC}, **STAGES}),
    "aliases": "a: &a [x]\n" + LAUGHS,
    "depth": "a: " + "[" * 5000,
}  # fmt: skip
MODELS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a class": lambda m: m.update(aggregator=SPEC),
    "a class of an installed module": lambda m: m.update(aggregator="this.s"),
    "a class in a grain": lambda m: m["grains"][1].update(aggregator=SPEC),
    "weights of timm": lambda m: m["vision"]["kwargs"].update(pretrained=True),
    "an address": lambda m: m["vision"]["kwargs"].update(pretrained_cfg={"url": "http://evil.invalid/x"}),
    "a file": lambda m: m["vision"]["kwargs"].update(pretrained_cfg={"file": "evil.pt"}, pretrained=True),
    "a checkpoint": lambda m: m["vision"]["kwargs"].update(checkpoint_path="evil.pt"),
    "a cache": lambda m: m["vision"]["kwargs"].update(cache_dir="evil"),
    "a name of the Hub": lambda m: m["vision"].update(name="hf-hub:evil/model"),
    "a folder of timm": lambda m: m["vision"].update(name="local-dir:evil"),
    "a text tower of the Hub": lambda m: m.update(
        clip={"architecture": sizes(text_cfg={"hf_model_name": "evil/model", "hf_tokenizer_name": "evil/model"})}
    ),
    "a tower of the Hub": lambda m: m.update(
        clip={"architecture": sizes(vision_cfg={"timm_model_name": "hf-hub:evil/model", "timm_model_pretrained": True})}
    ),
    "a name of open_clip": lambda m: m.update(clip={"architecture": "ViT-B-32", "weights": "openai"}),
    "weights of CLIP": lambda m: m.update(clip={"architecture": CLIP, "weights": "evil.pt", "max_words": 9}),
    "depth": lambda m: m.update(recipe=json.loads("[" * 500 + "]" * 500)),
}


def places() -> dict[str, tuple[Callable[[], object], ...]]:
    """What makes a hostile file, and what reads it; relative to the working directory."""
    at = Path()
    text, video = at / "text.pt", at / "video.pt"
    found: dict[str, tuple[Callable[[], object], ...]] = {
        "Features.load": (lambda: pickled(at / "f.pt"), lambda: mg.Features.load("f.pt")),
        "Features.load, a plain pickle": (
            lambda: written(at / "p.pt", pickle.dumps(Evil())),
            lambda: mg.Features.load("p.pt"),
        ),
        "Features.load, TorchScript": (lambda: acting(at / "fj.pt", at / "victim"), lambda: mg.Features.load("fj.pt")),
        "XCLIP.from_original": (lambda: pickled(at / "o.bin"), lambda: XCLIP.from_original("o.bin")),
        "XCLIP.from_clip, TorchScript": (
            lambda: acting(at / "j.pt", at / "victim"),
            lambda: XCLIP.from_clip("j.pt"),
        ),
        "XCLIP.from_clip, torch.save": (lambda: pickled(at / "c.pt"), lambda: XCLIP.from_clip("c.pt")),
        "XCLIP.from_clip, safetensors": (
            lambda: written(at / "c.safetensors", pickle.dumps(Evil())),
            lambda: XCLIP.from_clip("c.safetensors"),
        ),
        "XCLIP.from_clip, a folder": (lambda: transformers_folder(at / "hf"), lambda: XCLIP.from_clip("hf")),
        "XCLIP.from_pretrained, a tokenizer": (
            lambda: with_tokenizer(at / "tok"),
            lambda: XCLIP.from_pretrained("tok"),
        ),
        "XCLIP.from_pretrained, nothing there": (lambda: None, lambda: XCLIP.from_pretrained("runs/demo")),
        "runs.load_model, TorchScript": (lambda: acting(at / "l.pt", at / "victim"), lambda: load_model("l.pt")),
        "runs.load_model, a run": (lambda: run_folder(at / "run"), lambda: load_model("run")),
        "metrics.jsonl": (lambda: None, lambda: MetricsLog(Path("run/metrics.jsonl")).read()),
        "a checkpoint of training": (lambda: None, lambda: load_checkpoint(Path("run/checkpoint.pt"), {})),
        "Collection.open": (lambda: features(at / "features"), lambda: Collection.open("features")),
        "Collection.load": (
            lambda: None,
            lambda: [(c := Collection.open("features")), *map(c.load, c.shards)],
        ),
        "a shard of BabyAI's cache": (lambda: objects(at / "s.npz"), lambda: read_shard(at / "s.npz")),
        "a manifest": (lambda: manifest(at / "m.jsonl"), lambda: load_manifest("m.jsonl")),
        "annotations, MSVD": (lambda: msvd(at / "msvd"), lambda: SOURCES["msvd"].read(at / "msvd", "")),
        "annotations, JSON": (
            lambda: [written(at / "an" / n, "[" * 9000) for n in SOURCES["activitynet"].files],
            lambda: SOURCES["activitynet"].read(at / "an", ""),
        ),
        "evaluate, targets": (
            lambda: [saved(text), saved(video), written(at / "t.json", "[" * 9000)],
            lambda: command("evaluate", "--text", text, "--video", video, "--targets", "t.json", "--out", "out/a"),
        ),
        "evaluate, features": (
            lambda: None,
            lambda: command("evaluate", "--text", "f.pt", "--video", video, "--out", "out/b"),
        ),
        "evaluate, a model": (
            lambda: None,
            lambda: command("evaluate", "--text", text, "--video", video, "--model", "agg", "--out", "out/c"),
        ),
        "evaluate, a run": (
            lambda: run_folder(at / "out/run", manifest=str(at.resolve() / "m.jsonl")),
            lambda: command("evaluate", "--out", "out/run"),
        ),
        "evaluate, a run's cache": (
            lambda: run_folder(at / "out/cached", cache=str(at.resolve() / "elsewhere")),
            lambda: command("evaluate", "--out", "out/cached"),
        ),
        "explain, a run's cache": (
            lambda: None,
            lambda: command("explain", "--model", "out/cached", "--pair", "0", "--out", "out/x.png"),
        ),
        "explain": (
            lambda: None,
            lambda: command("explain", "--model", "j.pt", "--video", "v.mp4", "--text", "x", "--out", "out/x.png"),
        ),
        "extract": (lambda: None, lambda: command("extract", "m.jsonl", "--model", "agg", "--out", "out/e")),
        "search, features": (lambda: None, lambda: command("search", "x", "--in", "features")),
        "search, a model": (lambda: None, lambda: command("search", "x", "--in", "features", "--model", "agg")),
        "train, a config": (
            lambda: written(at / "t.yaml", TAGS),
            lambda: command("train", "--config", "t.yaml", "--out", "out/t"),
        ),
        "train, a checkpoint": (
            lambda: [
                run_folder(at / "out/again"),
                written(at / "again.yaml", f"data: {{size: 32, manifest: {at.resolve() / 'm.jsonl'}}}\n" + SMALL),
            ],
            lambda: command("train", "--config", "again.yaml", "--out", "out/again"),
        ),
    }
    for name, change in MODELS.items():
        folder = at / ("agg" if name == "a class" else f"model {name}")
        found[f"XCLIP.from_pretrained, {name}"] = (
            lambda folder=folder, change=change: model_folder(folder, change),
            lambda folder=folder: XCLIP.from_pretrained(folder),
        )
    for name, content in CONFIGS.items():
        path = at / f"{name}.{'json' if name == 'JSON' else 'yaml'}"
        found[f"training.load_config, {name}"] = (
            lambda path=path, content=content: written(path, content),
            lambda path=path: load_config(path).model.scorer(),
        )
    return found


SMALL = yaml.dump(
    {
        "model": {"vision": {"name": "vit_tiny_patch16_224", "kwargs": VISION}, "text": {"width": 16, "heads": 2}},
        "stages": [{"name": "a", "batch_size": 2, "epochs": 1}],
    }
)


def command(*arguments: object) -> str:
    """What a command says on stderr, and its exit code."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(argument) for argument in arguments])
    return f"{code}: {said.getvalue()}"


def digests(folder: Path) -> dict[str, str]:
    """Of all files outside of the folder for results."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and folder / "out" not in path.parents)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _put_back_load() -> None:
    load = torch.load
    torch.load = lambda *args, **settings: load(*args, **{**settings, "weights_only": False})  # type: ignore[assignment]


def _imported(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None) if module else None


WAYS: dict[str, Callable[[], None]] = {
    "torch.jit.load": lambda: setattr(state, "read_torchscript", lambda path: dict(torch.jit.load(path).state_dict())),
    "import_module": lambda: setattr(config, "_imported", _imported),
    "weights_only=False": _put_back_load,
    "any name is the Hub's": lambda: setattr(pretrained, "_HUB", re.compile("([a-z]+/[a-z]+)")),
}


def watch(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Read in every place, or in those of these names."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as a notebook and `python -m` have it
    (folder / "out").mkdir(exist_ok=True)
    (folder / "evil_module.py").write_text("import multigrain\nclass X(multigrain.MeanMax): pass\n")
    (folder / "victim").write_text("mine")
    hook, told = Hook(folder), {}
    sys.addaudithook(hook)
    table = places()
    for make, _ in table.values():
        make()
    for name, (_, read) in table.items():
        if names and name not in names:
            continue
        before, hook.acts = digests(folder), []
        try:
            outcome = str(read())
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        acts, hook.acts = hook.acts, None
        after = digests(folder)
        acts += [
            f"changed {path}" for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)
        ]
        acts += [f"imported {module}" for module in EVIL if sys.modules.pop(module, None)]
        told[name] = {"acts": acts, "outcome": outcome}
        if "changed victim" in acts:
            (folder / "victim").write_text("mine")
    return told


if __name__ == "__main__":
    if len(sys.argv) > 2:
        WAYS[sys.argv[2]]()
    answer = watch(Path(sys.argv[1]).resolve(), sys.argv[3:])
    print(json.dumps(answer))
