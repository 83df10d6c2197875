"""Settings of a training run, as plain data that YAML and the command line can write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from .. import checks
from ..checks import require
from ..data.video import STRATEGIES, Sampling
from ..metrics import PROTOCOLS
from ..models import XCLIP, ModelConfig

if TYPE_CHECKING:
    from ..data.babyai import BabyAI
    from ..data.clips import Splits

TASKS = ("frames", "videos")
PRECISIONS = ("fp32", "bf16", "fp16")
BABYAI_SIZE = 56  # pixels: 7 tiles of 8
SCALE_GROUPS = ("rest", "towers")


@dataclass(frozen=True)
class BabyAIConfig:
    """BabyAI pairs: see multigrain.data.babyai.load. `cache` is the folder of the generated rollouts.

    Raises:
        ValueError: a size that is no positive number, or splits that leave nothing to train on.
    """

    packages: ClassVar = {"minigrid": "demo", "matplotlib": "viz"}
    """Packages that make the pairs and draw the pictures of the page, each with the extra that has it."""

    cache: str = "runs/data"
    pairs: int = 9500
    single: int = 8000
    val: int = 1000
    test: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.fields(self, checks.POSITIVE, "pairs", "single", "val", "test")
        checks.fields(self, checks.NATURAL, "seed")
        held = self.val + self.test
        require(held < self.pairs, "val, test", f"together fewer than the {self.pairs} pairs", held)

    @property
    def protocol(self) -> str:
        """Protocol of an evaluation (see multigrain.retrieval_metrics): test sentences are distinct."""
        return "diagonal"

    def load(self, workers: int | None = None, progress: bool = True) -> BabyAI:
        """Load the pairs from the cache, or generate them into it.

        Args:
            workers, progress: see multigrain.data.babyai.load.

        Raises:
            ImportError, OSError, ValueError: see multigrain.data.babyai.load.
        """
        from ..data import babyai

        return babyai.load(
            self.cache,
            pairs=self.pairs,
            single=self.single,
            val=self.val,
            test=self.test,
            seed=self.seed,
            workers=workers,
            progress=progress,
        )

    def check(self, model: XCLIP) -> None:
        """Check that a model takes the frames.

        Raises:
            ValueError: frames of another size.
        """
        if model.frame_size != BABYAI_SIZE:
            raise ValueError(f"model.vision: expected frames of {BABYAI_SIZE} pixels, got {model.frame_size}")


@dataclass(frozen=True)
class ClipsConfig:
    """Videos and captions of a manifest: see multigrain.data.manifest.

    Args:
        manifest: its file; videos are found relative to it.
        protocol: that of the evaluation: "diagonal", "all_captions" or "group_max" (see multigrain.retrieval_metrics).
        fps: candidate frames per second, of which a stage takes at most its max_frames.
        strategy: which of them: "uniform", "head", "random" or "segment" (see multigrain.data.video.sample); chance
            has a part in training alone.
        size: side of a frame in pixels, that of the frame tower.
        strict: stop at the first video that cannot be read; otherwise it is reported and its pairs are left out.

    Raises:
        ValueError: a value out of range; its name is given.
    """

    packages: ClassVar = dict[str, str]()

    manifest: str
    protocol: str = "diagonal"
    fps: float = 1.0
    strategy: str = "uniform"
    size: int = 224
    strict: bool = False

    def __post_init__(self) -> None:
        require(self.protocol in PROTOCOLS, "protocol", f"one of {', '.join(PROTOCOLS)}", self.protocol)
        require(self.strategy in STRATEGIES, "strategy", f"one of {', '.join(STRATEGIES)}", self.strategy)
        checks.fields(self, checks.ABOVE_0, "fps")
        checks.fields(self, checks.POSITIVE, "size")

    def load(self, workers: int | None = None, progress: bool = True) -> Splits:
        """Load the manifest; videos are read when a batch asks for them.

        Args:
            workers, progress: of data that are generated; not read here.

        Raises:
            ImportError, OSError, ValueError: see multigrain.data.clips.load.
        """
        from ..data import clips

        return clips.load(self.manifest, Sampling(self.fps, strategy=self.strategy), size=self.size, strict=self.strict)

    def check(self, model: XCLIP) -> None:
        """Check that a model takes the frames.

        Raises:
            ValueError: frames of another size.
        """
        if self.size != model.frame_size:
            raise ValueError(f"data.size: expected that of the frame tower, {model.frame_size}, got {self.size}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a linear warm-up and a cosine to zero, both by step.

    Args:
        learning_rate: at the top.
        tower_learning_rate: that of the encoders of frames and words; None: the same.
        logit_scale_group: "rest" trains the logit scale at learning_rate, "towers" at that of the towers (as
            X-CLIP's code).
        weight_decay: of matrices; vectors, positions, mixing and bilinear matrices have none.
        betas, eps: of AdamW.
        warmup: the share of the steps, in [0, 1), in which the rate rises.
        clip_norm: upper limit of the gradient's norm.

    Raises:
        ValueError: a value out of range; its name is given.
    """

    learning_rate: float = 1e-3
    tower_learning_rate: float | None = None
    logit_scale_group: str = "rest"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    warmup: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        tower = () if self.tower_learning_rate is None else ("tower_learning_rate",)
        checks.fields(self, checks.ABOVE_0, "learning_rate", "clip_norm", "eps", *tower)
        checks.fields(self, checks.FROM_0, "weight_decay")
        checks.fields(self, checks.SHARE, "warmup")
        require(
            self.logit_scale_group in SCALE_GROUPS,
            "logit_scale_group",
            " or ".join(SCALE_GROUPS),
            self.logit_scale_group,
        )
        require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Args:
        name: as progress and metrics.jsonl show it.
        task: "frames", a CLIP in miniature: the last frame of the single-action pairs against their sentences,
            one global contrast; or "videos": the model's grains on the training pairs.
        epochs, batch_size: in pairs, of all ranks together; an incomplete last batch is left out.
        max_frames: frames of a video, sampled uniformly.
        bucket: sentences of similar length share a batch, sorted within so many batches at a time; 1 = not at
            all. Padding costs time, and sentences of one shape are harder negatives.
        distinct: no two pairs of one id, such as captions of one video, in a batch.
        freeze_vision: keep the frame tower as it is. The features of all frames are then computed once and kept
            in memory (pairs x max_frames x dim numbers).

    Raises:
        ValueError: a value out of range; its name is given.
    """

    name: str
    task: str = "videos"
    epochs: int = 5
    batch_size: int = 64
    max_frames: int = 12
    bucket: int = 1
    distinct: bool = False
    freeze_vision: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        checks.fields(self, checks.POSITIVE, "epochs", "batch_size", "max_frames", "bucket")
        require(self.batch_size >= 2, "batch_size", "at least 2 pairs, to contrast", self.batch_size)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run.

    Args:
        validation_pairs: how many validation videos, each with its first sentence, are scored after each epoch of a
            "videos" stage; 0 = none.
        checkpoint_seconds: a checkpoint is written at the first step after so many seconds, and after each epoch.
        keep: how many checkpoints stay, the last ones; a run goes on from the one before where the last is damaged.
        device: "cpu", "cuda", ..., or "auto": CUDA where there is one.
        precision: of the encoders: "fp32", or "bf16" or "fp16" under autocast (fp16 with a scaled loss). Scores and
            loss are always computed in fp32, and so is an evaluation.
        workers: processes that read batches ahead, at most one a core; 0: none.
        timeout: seconds that a rank waits for the others, which are then named; over NCCL torch has its own words.

    Raises:
        ValueError: no stage, or a value out of range; its name is given.
    """

    data: BabyAIConfig | ClipsConfig = field(default_factory=BabyAIConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: list[StageConfig] = field(default_factory=list[StageConfig])
    seed: int = 0
    validation_pairs: int = 250
    checkpoint_seconds: float = 20.0
    keep: int = 2
    device: str = "auto"
    precision: str = "fp32"
    workers: int = 0
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        checks.fields(self, checks.ABOVE_0, "timeout")
        names = [stage.name for stage in self.stages]
        require(len(names) > 0, "stages", "at least one stage", names)
        require(len(set(names)) == len(names), "stages", "distinct names", names)
        checks.fields(self, checks.NATURAL, "seed", "validation_pairs", "workers")
        checks.fields(self, checks.POSITIVE, "keep")
        checks.fields(self, checks.FROM_0, "checkpoint_seconds")
        require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        frozen = [stage.name for stage in self.stages if stage.freeze_vision]
        require(
            isinstance(self.data, BabyAIConfig) or not frozen,
            "freeze_vision",
            "false with a manifest, whose frames do not fit into memory (the model's own settings freeze towers)",
            f"true in stage {', '.join(frozen)}",
        )
