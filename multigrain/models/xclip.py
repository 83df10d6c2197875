"""XCLIP: two towers, a temporal encoder and a multi-grained scorer (Ma et al. 2022, arXiv 2207.07285).

    sentences -> text tower  -> sentence [B,D], word [B,M,D] -------------------+
                                                                                 +-> MultiGrain -> scores
    frames    -> frame tower -> raw [B,N,D] -> temporal encoder -> mean -> video +
                                  '------------------'--- frame_source --> frame '

Three unrelated models are called X-CLIP; this is the one for video-text retrieval, neither Microsoft's video
recogniser nor the package `x-clip`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import checks
from ..losses import InfoNCE
from ..losses.infonce import Ids
from ..reduce import mean
from ..scorer import MultiGrain
from ..tokens import Features, Tokens
from .config import ModelConfig
from .temporal import TemporalTransformer
from .towers import FrameTower, TextTower, TimmTower, WordTower

FRAME_SOURCES = ("raw", "temporal")


class XCLIP(nn.Module):
    """Encodes sentences and videos into Features, scores and trains on them.

    Args:
        vision: frames [U, 3, H, W] -> features [U, D] (FrameTower).
        text: sentences -> sentence and word features and a mask (TextTower), of the same width D.
        temporal: frame features [B, N, D], mask [B, N] -> [B, N, D]; None = the frames as they are.
        scorer: over the grains sentence, word, video, frame.
        criterion: holds the logit scale; default InfoNCE().
        frame_source: the frames of the fine grains: "raw", before the temporal encoder (the paper), or
            "temporal", after it. The video vector is always the mean of those after it.
        masked: keep padded words and frames out of the fine grains. False matches models trained that way.

    Raises:
        ValueError: towers of different widths, an unknown frame source.
    """

    def __init__(
        self,
        vision: FrameTower,
        text: TextTower,
        temporal: nn.Module | None,
        scorer: MultiGrain,
        criterion: InfoNCE | None = None,
        *,
        frame_source: str = "raw",
        masked: bool = True,
    ) -> None:
        super().__init__()
        if vision.dim != text.dim:
            raise ValueError(f"towers: expected features of one width, got vision {vision.dim} and text {text.dim}")
        self.vision, self.text, self.temporal = vision, text, temporal
        self.scorer = scorer
        self.criterion = InfoNCE() if criterion is None else criterion
        self.frame_source = checks.choice("frame_source", frame_source, FRAME_SOURCES)
        self.masked = masked
        self.config: ModelConfig | None = None

    @classmethod
    def from_config(cls, config: ModelConfig, vocabulary: Sequence[str]) -> XCLIP:
        """A new model of these settings, with a text tower over these words (see build_vocabulary).

        Raises:
            ImportError: timm is missing or cannot be imported; the message says what to do.
            ValueError: settings that do not fit; the message names them.
        """
        text, temporal = config.text, config.temporal
        words = WordTower(
            vocabulary,
            config.dim,
            text.width,
            text.depth,
            text.heads,
            text.max_words,
            config.dropout,
            pad_to_max=not config.masked,
        )
        encoder = (
            TemporalTransformer(config.dim, temporal.depth, temporal.heads, temporal.max_frames, config.dropout)
            if temporal.depth
            else None
        )
        model = cls(
            TimmTower(config.vision.name, config.dim, config.vision.kwargs),
            words,
            encoder,
            config.scorer(),
            InfoNCE(config.init_logit_scale),
            frame_source=config.frame_source,
            masked=config.masked,
        )
        model.config = config
        return model

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the multiplier of the scores, a parameter."""
        return self.criterion.logit_scale

    def freeze_vision(self, frozen: bool) -> None:
        """Keep the frame tower as it is, or let it train (again)."""
        if isinstance(self.vision, nn.Module):
            self.vision.requires_grad_(not frozen)

    def encode_text(self, sentences: Sequence[str]) -> Features:
        """Features(sentence [B, D], word [B, M, D] with its mask).

        Raises:
            TypeError, ValueError: not a list of sentences, or one without a word.
        """
        sentence, words, mask = self.text(sentences)
        return Features(sentence=sentence, word=(words, mask if self.masked else None))

    def encode_video(
        self,
        frames: Tensor,
        mask: Bool[Tensor, "b n"] | None = None,
        index: Int[Tensor, "b n"] | None = None,
    ) -> Features:
        """Features(video [B, D], frame [B, N, D] with its mask).

        Args:
            frames: [B, N, 3, H, W], uint8 or floating in [0, 1]; or, with `index`, the distinct frames
                [U, 3, H, W] of all videos, each encoded once.
            mask: [B, N], True = a real frame; None = all. Padded frames are not even encoded.
            index: [B, N], the row of `frames` of each frame.

        Raises:
            ValueError: shapes that do not fit.
        """
        if index is None:
            _expect("frames", frames, "[B, N, 3, H, W] (or [U, 3, H, W] with index)", 5)
            index = torch.arange(frames.shape[0] * frames.shape[1], device=frames.device).view(frames.shape[:2])
            frames = frames.flatten(0, 1)
        _expect("frames", frames, "[U, 3, H, W] with index", 4)
        _expect("index", index, "[B, N]", 2)
        if mask is not None and mask.shape != index.shape:
            raise ValueError(f"mask: expected shape {list(index.shape)}, got {list(mask.shape)}")
        if mask is None or not self.masked:
            return self.video_features(self.vision(frames)[index], mask)
        if not mask.any():
            raise ValueError("mask: expected a real frame in at least one video, got none")
        used, index = _compact(index, mask, len(frames))
        return self.video_features(self.vision(frames[used])[index], mask)

    def video_features(self, frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Features:
        """Features(video, frame) from the frame tower's features, as encode_video makes them."""
        temporal = frames if self.temporal is None else self.temporal(frames, mask)
        # As X-CLIP's code: the mean of unit vectors, so that a long frame does not outweigh the others.
        unit = Tokens(temporal, mask).normalized().features
        video = mean(unit, None if mask is None else mask[..., None], dim=1)
        fine = temporal if self.frame_source == "temporal" else frames
        return Features(video=video, frame=(fine, mask if self.masked else None))

    def forward(
        self,
        sentences: Sequence[str],
        frames: Tensor,
        mask: Bool[Tensor, "b n"] | None = None,
        index: Int[Tensor, "b n"] | None = None,
        ids: Ids | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch of pairs: sentence i belongs to video i (and to those with the same id)."""
        text, video = self.encode_text(sentences), self.encode_video(frames, mask, index)
        return self.criterion(self.scorer(text, video), ids)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model.safetensors and config.json (settings and vocabulary) into a folder, made if need be.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the model was not made by from_config, so that nothing says how to build it again.
        """
        if self.config is None or not isinstance(self.text, WordTower):
            raise ValueError("save_pretrained: expected a model made by XCLIP.from_config or from_pretrained")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"model": dataclasses.asdict(self.config), "vocabulary": self.text.vocabulary}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        partial = folder / "model.safetensors.tmp"
        _safetensors().save_file(weights, partial, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> XCLIP:
        """The model that save_pretrained wrote, in eval mode.

        Raises:
            ImportError: timm or safetensors is not installed.
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: settings or weights that are damaged or do not fit together.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"expected a folder with config.json and model.safetensors, {name} is missing in {folder}"
                )
        try:
            settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config, vocabulary = ModelConfig.from_dict(settings["model"]), cast("list[str]", settings["vocabulary"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / 'config.json'}: not the settings of an XCLIP: {error!r}") from error
        model = cls.from_config(config, vocabulary)
        try:
            model.load_state_dict(_safetensors().load_file(folder / "model.safetensors"))
        except Exception as error:  # safetensors raises its own type, torch a RuntimeError that lists the keys
            raise ValueError(f"{folder / 'model.safetensors'}: not the weights of this model: {error}") from error
        return model.eval()


def _compact(index: Tensor, mask: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The rows that real frames use, and the index into them (0 where padded)."""
    used = torch.zeros(total, dtype=torch.bool, device=index.device)
    used[index[mask]] = True
    new = torch.where(used, used.cumsum(0) - 1, 0)
    return used.nonzero()[:, 0], torch.where(mask, new[index], 0)


def _expect(name: str, value: Tensor, shape: str, ndim: int) -> None:
    if value.ndim != ndim or 0 in value.shape:
        raise ValueError(f"{name}: expected shape {shape}, got {list(value.shape)}")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('checkpoints need safetensors: pip install "multigrain[models]"') from error
    return safetensors.torch
