"""Folder of a run, and the progress that a training reports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..checks import printable
from ..evaluation.results import environment
from ..metrics import RetrievalMetrics
from . import checkpoint
from .checkpoint import MetricsLog, Position
from .config import TrainConfig

LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run after a step; `validation` is set after an epoch that was validated.

    `epoch` and `step` count from 1, `step` within its stage; `seconds` is the time of this process in the stage;
    `broken` has the videos that could not be read, each with the reason, as far as this process met them; `terms` has
    the terms of a criterion that is a sum (see Loss), else it is None.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    logit_scale: float
    learning_rate: float
    seconds: float
    validation: dict[str, RetrievalMetrics] | None = None
    broken: tuple[str, ...] = ()
    terms: dict[str, float] | None = None


class RunFolder:
    """Folder of a run, which rank zero reads and writes."""

    def __init__(self, out: Path, config: TrainConfig) -> None:
        self.out, self.config = out, config
        self.checkpoint, self.log = out / "checkpoint.pt", MetricsLog(out / "metrics.jsonl")
        self.saved, self.broken = time.monotonic(), 0

    def start(
        self, settings: dict[str, Any], resume: bool, use: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any] | None:
        """Return the state to go on from, which `use` has taken; or None, with the files of an earlier run removed."""
        state = None
        if resume and checkpoint.checkpoints(self.checkpoint):
            state = checkpoint.load_checkpoint(self.checkpoint, settings, use)
        else:
            self._clear()
        self.log.keep_until(Position(-1) if state is None else Position(*state["position"]))
        files.write_json(self.out / "config.json", asdict(self.config))
        files.write_json(self.out / "environment.json", environment())
        return state

    def _clear(self) -> None:
        """Remove the files of an earlier run: its model must not pass for that of this one."""
        for old in (*checkpoint.checkpoints(self.checkpoint), self.out / "broken.txt"):
            old.unlink(missing_ok=True)
        if (model := self.out / "model").exists():
            shutil.rmtree(model)

    def write(
        self,
        event: TrainingProgress,
        position: Position,
        state: Callable[[], dict[str, Any]],
        at_epoch_end: bool,
        ending: bool,
    ) -> None:
        """Write a line now and then, and a checkpoint after an epoch, before the end and every so often."""
        if at_epoch_end or event.step % LOG_EVERY == 0:
            values = {"kind": "epoch" if at_epoch_end else "step", **asdict(event), "broken": len(event.broken)}
            values["validation"] = files.rounded(event.validation)
            if event.terms is None:
                del values["terms"]
            self.log.write(position, values)
        if len(event.broken) > self.broken:
            path, self.broken = self.out / "broken.txt", len(event.broken)
            known = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
            files.write_lines(path, dict.fromkeys([*known, *map(printable, event.broken)]))
        if at_epoch_end or ending or time.monotonic() - self.saved > self.config.checkpoint_seconds:
            checkpoint.save_checkpoint(self.checkpoint, state(), self.config.keep)
            self.saved = time.monotonic()
