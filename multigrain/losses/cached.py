"""CachedLoss: a batch as large as its features allow, in the encoder memory of one chunk.

    1. features of all chunks, without a graph
    2. loss(features), and its gradient by them
    3. each chunk again, with a graph, and that gradient through it

GradCache (Gao et al. 2021, arXiv 2101.06983): exact, at the price of encoding once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Generic, TypeAlias, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..tokens import Features, Tokens
from .base import Loss
from .batch import text_and_video

Chunk = TypeVar("Chunk")
EncodeChunk: TypeAlias = "Callable[[Chunk], tuple[Features, Features]]"
NoSync: TypeAlias = "Callable[[], AbstractContextManager[Any]]"
# (side, grain) -> shape, mask, unit
_Layout: TypeAlias = "dict[tuple[int, str], tuple[torch.Size, Tensor | None, bool]]"


class CachedLoss(Loss):
    """loss(text, video, ids) of a batch that is encoded chunk by chunk, and once more in the backward pass.

    `backward()` of the returned loss does the second pass: gradient scaling, accumulation and clipping work as usual.
    Dropout and autocast are the same in both passes: the random states of CPU and CUDA are restored. A batch
    normalisation sees chunks, and sees them twice. `torch.autograd.grad` cannot reach the encoder's parameters.

    Args:
        loss: (text, video, ids) -> scalar: RetrievalLoss, which gathers the features of all ranks first.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = checks.instance("loss", loss, nn.Module)
        takes = checks.takes(getattr(loss, "module", loss), 3)  # as DistributedDataParallel wraps it
        checks.require(takes, "loss", "one of (text, video, ids), such as RetrievalLoss", type(loss).__name__)

    def forward(
        self,
        encode: EncodeChunk[Chunk],
        chunks: Sequence[Chunk],
        ids: Any = None,
        no_sync: NoSync | None = None,
        **settings: Any,
    ) -> Float[Tensor, ""]:
        """Compute the loss of all chunks together.

        Args:
            encode: a chunk -> (text, video), the Features of its pairs: one forward pass of all that is trained.
            chunks: of the batch, of any kind and of sizes that may differ. Ranks may have different numbers of them
                (not under FSDP2, where every forward and backward pass is collective).
            ids: of the whole batch, as in RetrievalLoss.
            no_sync: makes a context in which a backward pass leaves gradients unsynchronised, as it is for all chunks
                but the last; None: that of `encode`, where it is a DistributedDataParallel or has one like it.
            settings: more for the loss, such as queues.

        Raises:
            ValueError: no chunk; or, in the backward pass, features of another shape than in the first.
        """
        if len(chunks) == 0:
            raise ValueError("chunks: expected at least one, got none")
        tape = _Tape(encode, chunks, no_sync or getattr(encode, "no_sync", nullcontext))
        # Autograd enters _Replay for the sake of a tensor that needs a gradient; the parameters are the encoder's.
        anchor = torch.empty(0, requires_grad=torch.is_grad_enabled())
        text, video = tape.rebuild(cast("tuple[Tensor, ...]", _Replay.apply(anchor, tape)))
        return self.loss(text, video, ids, **settings)

    def _terms_of(self, loss: Tensor) -> dict[str, Tensor]:
        inner = getattr(self.loss, "module", self.loss)  # as DistributedDataParallel wraps it
        return getattr(inner, "terms", None) or super()._terms_of(loss)


class _Tape(Generic[Chunk]):
    """Recorded states and layouts: each chunk is encoded a second time like the first."""

    def __init__(self, encode: EncodeChunk[Chunk], chunks: Sequence[Chunk], no_sync: NoSync) -> None:
        self.encode, self.chunks, self.no_sync = encode, chunks, no_sync
        self.random: list[_Random] = []
        self.layouts: list[_Layout] = []
        # Weights that autocast cached for a pass without a graph would have none in the next.
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        self.autocast = [(d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in devices]

    def record(self) -> tuple[Tensor, ...]:
        """Encode all chunks without a graph, and return their features chunk by chunk."""
        tensors: list[Tensor] = []
        for chunk in self.chunks:
            self.random.append(_Random())
            with self.no_sync():
                tokens = self._encode(chunk)
            self.layouts.append({key: (x.features.shape, x.mask, x.unit) for key, x in tokens.items()})
            tensors += [x.features.detach() for x in tokens.values()]  # an encoder may return what it was given
        return tuple(tensors)

    def rebuild(self, tensors: Sequence[Tensor]) -> tuple[Features, Features]:
        """Assemble texts and videos of the whole batch from the features of all chunks."""
        rest = iter(tensors)
        parts: tuple[list[Features], list[Features]] = [], []
        for layout in self.layouts:
            grains: tuple[dict[str, Tokens], dict[str, Tokens]] = {}, {}
            for (side, name), (_, mask, unit) in layout.items():
                grains[side][name] = Tokens(next(rest), mask, name, unit)
            for side in (0, 1):
                parts[side].append(Features(**grains[side]))
        return Features.cat(parts[0]), Features.cat(parts[1])

    def replay(self, grads: Iterator[Tensor | None]) -> None:
        """Encode each chunk again, and pass the gradient by its features through it."""
        now = _Random()
        for i, (chunk, random, layout) in enumerate(zip(self.chunks, self.random, self.layouts, strict=True)):
            random.restore()
            last = i == len(self.chunks) - 1
            with nullcontext() if last else self.no_sync():
                with torch.enable_grad():
                    tokens = self._encode(chunk)
                shapes = {key: x.features.shape for key, x in tokens.items()}
                if shapes != {key: shape for key, (shape, _, _) in layout.items()}:
                    raise ValueError(
                        f"encode: expected features of the same shapes in both passes, got {shapes} in the second "
                        f"for chunk {i}"
                    )
                pairs = [(x.features, g) for x, g in zip(tokens.values(), grads, strict=False) if g is not None]
                pairs = [(x, g) for x, g in pairs if x.requires_grad]
                if pairs:
                    torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        now.restore()

    def _encode(self, chunk: Chunk) -> dict[tuple[int, str], Tokens]:
        """Encode a chunk: side and name of each grain -> its tokens."""
        with ExitStack() as stack:
            for device, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            encoded = self.encode(chunk)
        sides = text_and_video("what encode returned", encoded)
        return {(i, name): side[name] for i, side in enumerate(sides) for name in side.names}


class _Replay(torch.autograd.Function):
    """The features of all chunks; their gradient goes through the encoder, chunk by chunk, within the backward pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tape: _Tape[Any]) -> tuple[Tensor, ...]:
        """Encode without a graph, like everything in the forward pass of a Function."""
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return tape.record()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Encode again; the gradients of the parameters are added to as in any backward pass."""
        ctx.tape.replay(iter(grads))
        return None, None


class _Random:
    """The states of the random number generators of CPU and CUDA."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Set them back."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
