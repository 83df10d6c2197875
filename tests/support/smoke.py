"""What an installation without any extra must do: `python tests/support/smoke.py README.md`, in that environment.

Prints the seconds that `import multigrain` takes beyond torch. tests/test_release.py runs it over the wheel.
"""

# ruff: noqa: E402 (what the import of the package takes is measured)
from __future__ import annotations

import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch

begun = time.process_time()
import multigrain as mg

SECONDS = time.process_time() - begun

from multigrain.aggregators import aggregator_names

D, M, N = 8, 5, 4
VECTORS = mg.MultiGrain(mg.VideoSentence())


def features() -> tuple[mg.Features, mg.Features]:
    """Four texts and four videos, some of their tokens padding."""
    words = torch.arange(M) < torch.tensor([[M], [3], [2], [2]])
    frames = torch.arange(N) < torch.tensor([[N], [2], [3], [2]])
    weights = torch.rand(4, M, 1) + 0.1
    text = mg.Features(sentence=torch.randn(4, D), word=(torch.randn(4, M, D), words), word_weight=(weights, words))
    return text, mg.Features(frame=(torch.randn(4, N, D), frames))


def scores_and_losses() -> None:
    text, video = features()
    for name in aggregator_names():
        assert mg.Grain("word", "frame", name)(text, video).isfinite().all(), name
    for backend in ("eager", "blocked"):
        mg.MultiGrain(mg.FrameWord("aosm"), backend=backend)(text, video)
    for criterion in (mg.InfoNCE(), mg.Sigmoid(), mg.losses.MarginRanking() + 0.5 * mg.InfoNCE()):
        scorer = mg.MultiGrain(mg.SentenceFrame(), mg.FrameWord(), weights="learned")
        mg.RetrievalLoss(scorer, criterion)(text, video).backward()
        assert scorer.weight_logits is not None and scorer.weight_logits.grad is not None
    for name in mg.recipes.names():
        recipe = mg.recipes.build(name, D, N)
        assert recipe(text, video).isfinite(), name
        assert recipe.scores(text, video).shape == (4, 4), name


def retrieval() -> None:
    text, video = features()
    for pooler in (mg.heads.MeanPool(), mg.heads.AttentionPool(D)):
        assert mg.heads.Pool("frame", "video", pooler)(video)["video"].dim == D
    for pooler in (mg.grains.SoftmaxPool(), mg.grains.CrossAttentionPool(D)):
        assert mg.grains.PooledGrain("sentence", "frame", pooler)(text, video).shape == (4, 4)
    scores = mg.score_matrix(mg.FrameWord(), text, video, block=3)
    values, _ = mg.top_k(mg.FrameWord(), text, video, k=2)
    torch.testing.assert_close(values, scores.topk(2, 1).values)
    assert mg.retrieval_metrics(scores)["t2v"]["R@10"] == 100
    assert mg.rerank(scores, mg.cross_encoder.CrossEncoder(D, heads=2).eval(), 2, text, video).shape == (4, 4)
    for corrected in (
        mg.hubness.dual_softmax(scores),
        mg.hubness.inverted_softmax(scores, scores),
        mg.hubness.dynamic_inverted_softmax(scores, scores),
        mg.hubness.sinkhorn(scores),
    ):
        assert corrected.isfinite().all()
    with tempfile.TemporaryDirectory() as folder:
        text.save(f"{folder}/text.pt")
        torch.testing.assert_close(mg.Features.load(f"{folder}/text.pt")["word"].features, text["word"].features)


def needs(extra: str, use: Callable[[], object]) -> None:
    """An ImportError that says how to install the extra."""
    said = ""
    try:
        use()
    except ImportError as error:
        said = str(error)
    assert f'pip install "multigrain[{extra}]"' in said, f"{extra}: {said or 'no error'}"


def extras(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "video.mp4").touch()
    needs("viz", lambda: import_module("multigrain.viz"))
    needs("demo", lambda: import_module("multigrain.data.babyai"))
    needs("metric", lambda: import_module("multigrain.interop.pytorch_metric_learning"))
    needs("cli", lambda: import_module("multigrain.cli.commands"))
    needs("cli", lambda: import_module("multigrain.training").load_config("demo"))
    needs("models", lambda: import_module("multigrain.models").XCLIP.from_clip("ViT-B-32"))
    needs("hf", lambda: import_module("multigrain.models").XCLIP.from_clip(folder))
    needs("data", lambda: import_module("multigrain.data.video").read_video(folder / "video.mp4"))


def interop() -> None:
    """The modules that exchange tensors alone need no partner."""
    clip4clip, open_clip, sentence_transformers, transformers = (
        import_module(f"multigrain.interop.{name}")
        for name in ("clip4clip", "open_clip", "sentence_transformers", "transformers")
    )
    words, frames, mask = torch.randn(4, M, D), torch.randn(4, N, D), torch.ones(4, N, dtype=torch.long)
    text, video = clip4clip.to_features(words[:, 0], frames, mask)
    assert VECTORS(text, video).shape == (4, 4)
    assert open_clip.ClipLoss(VECTORS)(video, text, 10.0).isfinite()
    assert sentence_transformers.as_similarity_fct("aosm")(words, frames).shape == (4, 4)
    output = SimpleNamespace(last_hidden_state=words)
    assert transformers.encoder_features(output).names == ("sentence", "word")


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.manual_seed(0)
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(), re.M | re.S)), {})
    scores_and_losses()
    retrieval()
    interop()
    with tempfile.TemporaryDirectory() as temporary:
        extras(Path(temporary))
    print(f"{SECONDS:.4f}")
