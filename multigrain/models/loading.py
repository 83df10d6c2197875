"""Loading and saving of an XCLIP: from settings, from CLIP, from a folder, from a checkpoint of X-CLIP's code."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn

from .. import files
from .build import build_parts
from .clip import ClipText
from .clip.tokenizer import HuggingFaceTokenizer
from .clip.weights import ClipWeights, load_clip
from .config import (
    ClipConfig,
    GrainConfig,
    ModelConfig,
    RecipeConfig,
    TemporalConfig,
    VisionConfig,
    four_grains,
    mixing_grains,
)
from .original import load_original, read_original, save_original
from .pretrained import find_folder, read_settings, read_weights, write_folder
from .state import check_state, distinct_state
from .towers import FrameTower, TextTower, WordTower


class PretrainedMixin(nn.Module):
    """Build a model from its settings, write it and read it again."""

    config: ModelConfig | None
    vision: FrameTower
    text: TextTower

    @classmethod
    def from_config(
        cls, config: ModelConfig, vocabulary: Sequence[str] | None = None, weights: ClipWeights | None = None
    ) -> Self:
        """Build a new model: with CLIP's towers where config.clip is set, or from scratch.

        Args:
            vocabulary: the words of a text tower trained from scratch (see build_vocabulary).
            weights: CLIP, where it was loaded already (see load_clip); None: config.clip says from where.

        Raises:
            ImportError: timm, open_clip, ... is missing or cannot be imported; the message says what to do.
            FileNotFoundError: there are no weights where the settings say.
            ValueError: settings that do not fit, or no vocabulary; the message names them.
        """
        parts, config = build_parts(config, vocabulary, weights)
        model = cls(**parts)
        model.config = config
        return model

    @classmethod
    def from_clip(
        cls,
        weights: Any,
        architecture: str | Mapping[str, Any] | None = None,
        *,
        tokenizer: Any = None,
        aggregator: str | dict[str, Any] = "aosm",
        grains: list[GrainConfig] | None = None,
        temporal: TemporalConfig | None = None,
        max_words: int = 32,
        max_frames: int = 12,
        masked: bool = True,
        mixing: bool = False,
        frame_source: str = "raw",
        recipe: RecipeConfig | None = None,
        **clip: Any,
    ) -> Self:
        """Build X-CLIP over CLIP's towers.

            XCLIP.from_clip("ViT-B-32.pt")                                   # OpenAI's archive
            XCLIP.from_clip("laion2b.safetensors", "ViT-B-32")               # weights that open_clip trained
            XCLIP.from_clip("clip-vit-base-patch32/")                        # a folder of transformers

        Args:
            weights, architecture, tokenizer: see load_clip.
            aggregator, grains, frame_source, masked, recipe: see ModelConfig.
            temporal: default the transformer of X-CLIP's code, four blocks that start from CLIP's text transformer.
                The max_frames below takes the place of its own.
            max_words, max_frames: W and N.
            mixing: the eight learned matrices of X-CLIP's code; they tie the model to max_words and max_frames.
            clip: further settings of ClipConfig, such as frozen_layers and grad_checkpointing.

        Raises:
            ImportError, FileNotFoundError: see from_config.
            ValueError: see load_clip; or mixing with other grains than X-CLIP's.
        """
        if mixing and (grains is not None or aggregator != "aosm"):
            raise ValueError("mixing: expected X-CLIP's grains with AOSM, got other grains or another aggregator")
        loaded = load_clip(weights, architecture, tokenizer)
        config = ModelConfig(
            clip=ClipConfig(max_words=max_words, **clip),
            temporal=dataclasses.replace(temporal or TemporalConfig(depth=4), max_frames=max_frames),
            grains=mixing_grains(max_words, max_frames) if mixing else four_grains() if grains is None else grains,
            aggregator=aggregator,
            frame_source=frame_source,
            masked=masked,
            dropout=0.0,
            recipe=recipe,
        )
        return cls.from_config(config, weights=loaded)

    @classmethod
    def from_timm(cls, vision: str, weights: Any, architecture: Any = None, **settings: Any) -> Self:
        """Build X-CLIP over a vision tower of timm and CLIP's text tower.

        Args:
            vision: a timm name. CLIP's own ("vit_base_patch32_clip_quickgelu_224") gets CLIP's vision weights too;
                any other has the weights that timm gives it and a new projection to CLIP's width.
            weights, architecture: CLIP, see load_clip.
            settings: arguments of from_clip; and `vision_kwargs`, for timm.create_model, such as {"pretrained": True}.

        Raises:
            ValueError: a CLIP tower whose activation or sizes differ from the weights'; and see from_clip.
        """
        tower = VisionConfig(vision, settings.pop("vision_kwargs", {}))
        return cls.from_clip(weights, architecture, vision=tower, **settings)

    @classmethod
    def from_original(cls, path: str | os.PathLike[str], masked: bool = False) -> Self:
        """Load a checkpoint of X-CLIP's own code, in eval mode.

        Args:
            path: a file that this code saves (pytorch_model.bin.N), or its state dict as .safetensors. All sizes, the
                temporal encoder, max_words and max_frames are told from the tensors.
            masked: False scores as the original does, whose padding takes part; True keeps it out.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of checkpoint; tensors that are missing, unexpected or of another shape are named.
        """
        config, state = read_original(path, masked)
        model = cls.from_config(config)
        load_original(model, state, os.fspath(path))
        return model.eval()

    def save_original(self, path: str | os.PathLike[str]) -> None:
        """Write the state dict that X-CLIP's own code reads, in fp32; as safetensors where the path says so.

        Raises:
            ValueError: the original has no place for something in this model (it needs OpenAI's kind of CLIP and
                mixing=True).
        """
        save_original(self, path)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model.safetensors and config.json (settings and vocabulary) into a folder, made if need be.

        A tokenizer of transformers is written too; one of your own class is not.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the model was put together by hand, so that nothing says how to build it again.
        """
        if self.config is None or not isinstance(self.text, WordTower | ClipText):
            raise ValueError("save_pretrained: expected a model made by a method of XCLIP, such as from_config")
        vocabulary = self.text.vocabulary if isinstance(self.text, WordTower) else None
        tokenizer = None if isinstance(self.text, WordTower) else self.text.tokenizer
        theirs = tokenizer.tokenizer if isinstance(tokenizer, HuggingFaceTokenizer) else None
        write_folder(folder, self.config, vocabulary, self, theirs)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], trust: Sequence[str] = ()) -> Self:
        """Load a model that save_pretrained wrote, in eval mode.

        A folder can be opened whoever made it: its settings may name multigrain's aggregators and recipes, and the
        ones that the program has registered, and nothing else that would run.

        Args:
            place: the folder, or "hub:owner/name" for a repository on the Hugging Face Hub that holds it.
            trust: packages of your own, such as ("my_package",), whose aggregators the settings may name too. They
                are imported.

        Raises:
            ImportError: timm, open_clip or safetensors is not installed; or a package of `trust`.
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: settings or weights that are damaged or do not fit together; a class of others.
        """
        folder = find_folder(place)
        settings = read_settings(folder, trust)
        try:
            model = cls.from_config(*settings)
        except ImportError:
            raise
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        except Exception as error:  # whatever torch, timm and open_clip make of odd settings
            files.refuse(folder / "config.json", error)
        state = read_weights(folder)
        check_state(distinct_state(model), state, str(folder / "model.safetensors"))
        model.load_state_dict(state, strict=False)  # what has several names is there under one
        return model.eval()
