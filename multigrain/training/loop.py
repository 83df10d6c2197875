"""Training loop.

The order of the batches is a function of (seed, stage, epoch), the random numbers of a step of these, the step and the
rank, and the learning rate of the step; a checkpoint holds the weights, the optimizer and the position. A run that was
stopped anywhere therefore does the same operations as one that was not, and on a CPU, on the same machine with as many
threads and ranks, ends with the same weights.

Where torch.distributed has R ranks, rank r takes every R-th pair of each batch from the r-th on, and the loss and its
gradient are those of the whole batch (see RetrievalLoss): the ranks train what one process would, up to rounding and
the random numbers of dropout. A run may go on with another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .. import files
from ..checks import NotFinite, require
from ..data.pairs import Batch, Data, Pairs, loading
from ..distributed import world
from ..distributed.collectives import all_gather_object, all_reduce, from_rank_zero, is_rank_zero
from ..evaluation.encoding import Unreadable, first_rows
from ..evaluation.retrieval import evaluate
from ..metrics import RetrievalMetrics
from ..models import XCLIP, build_vocabulary
from . import checkpoint, parallel
from .checkpoint import Position
from .config import StageConfig, TrainConfig
from .data import batches, fingerprint
from .momentum import Momentum, momentum_of
from .objectives import make_objective
from .optimizer import learning_rate, make_optimizer
from .run_folder import RunFolder, TrainingProgress
from .validate import check_batch, check_model, check_pairs, device


def train(
    config: TrainConfig,
    data: Data,
    out_dir: str | os.PathLike[str],
    resume: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> XCLIP:
    """Train through all stages and return the model in eval mode.

    Writes into out_dir: model/ (XCLIP.from_pretrained reads it), metrics.jsonl, config.json, environment.json,
    checkpoint.pt and, if there were any, broken.txt: the videos that could not be read.

    Args:
        resume: go on from the checkpoint in out_dir, where there is one. False starts anew.
        progress: called after every step and every validation.

    Collective where torch.distributed has several ranks; rank 0 reads and writes out_dir.

    Raises:
        OSError: out_dir cannot be written to, or another process is writing there.
        ValueError: no checkpoint is complete, or it is of another run; settings that do not fit.
        FloatingPointError: the loss is no longer finite; the message names the step.
        SystemExit: with code 143, after SIGTERM to any rank and a last checkpoint.
    """
    out = from_rank_zero(partial(files.open_folder, out_dir))
    with parallel.locked(out):
        with parallel.Termination() as termination:
            run = _Run(config, data, termination)
            folder = RunFolder(out, config)
            if (state := from_rank_zero(partial(folder.start, run.settings, resume, run.load_state))) is not None:
                run.load_state(state)
            for event, at_epoch_end in run.steps():
                if is_rank_zero():
                    folder.write(event, run.position, run.state, at_epoch_end, run.ending)
                if progress is not None:
                    progress(event)
                if run.ending:
                    raise SystemExit(parallel.TERMINATED)
        run.model.freeze_vision(False)
        model = run.model.eval()
        if is_rank_zero():
            model.save_pretrained(out / "model")
        all_gather_object(None)  # the others may read it now
    return model


class _Run:
    """Model, optimizer and how far they are."""

    def __init__(self, config: TrainConfig, data: Data, termination: parallel.Termination) -> None:
        torch.manual_seed(config.seed)
        self.config, self.data, self.termination = config, data, termination
        self.ranks = world()[1]
        self.ending = False  # as all ranks agree in every step
        self.device = device(config.device)
        check_pairs(config, data)
        sentences = [*data.single.sentences, *data.train.sentences]
        self.model = XCLIP.from_config(config.model, build_vocabulary(sentences)).to(self.device)
        check_model(config, self.model)
        self.model.weigh_words(data.train.sentences)
        self.optimizer: torch.optim.Optimizer | None = None
        self.momentum: Momentum | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.broken: dict[str, None] = {}  # in order, each once
        self.position = Position()
        self.last: TrainingProgress | None = None
        self.settings = {**checkpoint.comparable(config), "pairs": fingerprint(data)}

    def steps(self) -> Iterator[tuple[TrainingProgress, bool]]:
        """Train; yield after every step and every epoch how far the run is, and True after an epoch."""
        while self.position.stage < len(self.config.stages):
            yield from self._stage(self.config.stages[self.position.stage])

    def _stage(self, stage: StageConfig) -> Iterator[tuple[TrainingProgress, bool]]:
        """Train the rest of one stage, and yield like `steps`."""
        started, number = time.monotonic(), self.position.stage
        pairs = self.data.single if stage.task == "frames" else self.data.train
        optimizer = self._begin(stage)
        objective = make_objective(self.model, stage, pairs, self.momentum)
        compute_loss, rank = parallel.averaged(self.model, objective.share), world()[0]
        for epoch in range(self.position.epoch, stage.epochs):
            seed, done = _mix(self.config.seed, number, epoch), self.position.step
            order = self._order(stage, pairs, seed)
            require(done <= len(order), "checkpoint", f"a step of at most {len(order)}", done)
            total = len(order) * stage.epochs
            self.model.train()
            read = partial(objective.read, seed)
            for i, item in enumerate(loading(read, order[done:], self.config.workers), done):
                step = epoch * len(order) + i
                rate = learning_rate(stage.optimizer, step, total)
                self.broken |= dict.fromkeys(getattr(item, "broken", ()))
                self.position = Position(number, epoch, i + 1)
                if isinstance(item, Batch) and not item.sentences:
                    continue  # none of its videos could be read, by any rank
                torch.manual_seed(_mix_all(seed, i, rank))
                try:
                    with torch.autocast(self.device.type, self._half, enabled=self._half is not None):
                        loss = compute_loss(item)
                except NotFinite as error:
                    self._stop(stage, str(error))
                terms = objective.loss.terms
                mean, *means = self._step(stage, [loss, *terms.values()], optimizer, rate)
                scale, seconds = float(self._scale(stage).detach().exp()), time.monotonic() - started
                place = stage.name, epoch + 1, stage.epochs, step + 1, total
                self.last = TrainingProgress(*place, mean, scale, rate, seconds)
                if len(terms) > 1:
                    self.last = replace(self.last, terms=dict(zip(terms, means, strict=True)))
                yield replace(self.last, broken=tuple(self.broken)), False
            yield self._end_epoch(stage, epoch), True

    def _end_epoch(self, stage: StageConfig, epoch: int) -> TrainingProgress:
        """Validate and go on to the next epoch or stage."""
        validation = self._validate(stage)
        for found in all_gather_object(tuple(self.broken)):
            self.broken |= dict.fromkeys(found)
        if epoch + 1 == stage.epochs:
            self.position, self.optimizer = Position(self.position.stage + 1), None
        else:
            self.position = Position(self.position.stage, epoch + 1)
        if self.last is None:
            raise ValueError(f"no video of an epoch could be read; the first: {next(iter(self.broken))}")
        return replace(self.last, validation=validation, broken=tuple(self.broken))

    def _scale(self, stage: StageConfig) -> Tensor:
        return self.model.criterion.logit_scale if stage.task == "frames" else self.model.logit_scale

    @property
    def _half(self) -> torch.dtype | None:
        """Type in which encoders compute under autocast; None: no autocast."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)

    def _order(self, stage: StageConfig, pairs: Pairs, seed: int) -> list[list[int]]:
        """Make the batches of an epoch, those of all ranks together."""
        ids = pairs.ids.tolist() if stage.distinct else None
        order = batches(pairs.sentences, stage.batch_size, stage.bucket, seed, ids)
        check_batch(stage, min(map(len, order)))
        if stage.distinct and (missing := len(pairs.sentences) - sum(map(len, order))) >= len(order[0]):
            warnings.warn(
                f"stage {stage.name!r}: {missing} of {len(pairs.sentences)} pairs are left out of this epoch, since "
                "some ids have more pairs than there are batches without two of one id",
                stacklevel=2,
            )
        return order

    def _step(
        self, stage: StageConfig, losses: list[Tensor], optimizer: torch.optim.Optimizer, rate: float
    ) -> list[float]:
        """Take a step down the first of the losses; return all of them, each the mean over ranks."""
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        loss = losses[0]
        told = [loss.new_tensor(self.termination.asked), *(x.detach() for x in losses)]
        asked, mean, *terms = (all_reduce(torch.stack([x.double() for x in told])) / self.ranks).tolist()
        self.ending = asked > 0
        if not math.isfinite(mean):
            self._stop(stage, f"expected a finite loss, got {mean}")
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), stage.optimizer.clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return [mean, *terms]

    def _stop(self, stage: StageConfig, why: str) -> NoReturn:
        rate = stage.optimizer.learning_rate
        raise FloatingPointError(
            f"stage {stage.name!r}, {self.position}: {why}; a lower learning_rate than {rate} may help"
        )

    def _validate(self, stage: StageConfig) -> dict[str, RetrievalMetrics] | None:
        """Compute the metrics of the first validation videos, each with its first sentence."""
        val = self.data.val
        rows = first_rows(val, range(len(val.sentences)))[: self.config.validation_pairs]
        if stage.task == "frames" or not rows:
            return None
        size = min(100, stage.batch_size)
        try:
            found = evaluate(self.model, val, rows, stage.max_frames, batch_size=size, workers=self.config.workers)
        except Unreadable as error:
            self.broken |= dict.fromkeys(error.broken)
            return None
        self.broken |= dict.fromkeys(found.broken)
        return found.metrics

    def _begin(self, stage: StageConfig) -> torch.optim.Optimizer:
        """Freeze the towers that the stage freezes; return its optimizer, as a checkpoint left it or new."""
        self.model.freeze_vision(stage.freeze_vision)
        self.model.zero_grad(set_to_none=True)  # what a frozen tower had before would count in the gradient's norm
        if stage.task == "videos" and self.momentum is None:
            self.momentum = momentum_of(self.model)
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, stage.optimizer)
        return self.optimizer

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "settings": json.dumps(self.settings),
            "position": tuple(self.position),
            "last": None if self.last is None else asdict(self.last),
            "model": self.model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "momentum": None if self.momentum is None else self.momentum.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned. One that does not fit raises an error; another may then be loaded."""
        self.position, self.optimizer, self.momentum = Position(*state["position"]), None, None
        epochs = [*(stage.epochs for stage in self.config.stages), 1]  # past the last stage there is one place
        counts = all(type(number) is int and number >= 0 for number in self.position)
        within = counts and self.position.stage < len(epochs) and self.position.epoch < epochs[self.position.stage]
        require(within, "position", "one of this run", self.position)
        self.last = None if state["last"] is None else TrainingProgress(**state["last"])
        self.model.load_state_dict(state["model"])
        if state["momentum"] is not None:
            self.momentum = Momentum(self.model)
            self.momentum.load_state_dict(state["momentum"])
        if state["optimizer"] is not None:
            optimizer = self._begin(self.config.stages[self.position.stage])
            optimizer.load_state_dict(state["optimizer"])
            for weight, values in optimizer.state.items():  # which load_state_dict does not look at
                shapes = {value.shape for value in values.values() if isinstance(value, Tensor)}
                require(shapes <= {weight.shape, ()}, "optimizer", f"values of shape {list(weight.shape)}", shapes)
        self.scaler.load_state_dict(state["scaler"])


def _mix(seed: int, stage: int, epoch: int) -> int:
    return seed * 1_000_003 + stage * 10_007 + epoch


def _mix_all(*numbers: int) -> int:
    """Make a seed of its own for each sequence of numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest())
