"""Numbers at the ends of their range: right, by what they tend to, or refused; in every backend alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import multigrain as mg
from tests.strategies import close

BACKENDS = ("eager", "blocked")
TEMPERED = ("aosm", "logsumexp", "isa", "normalized_softmax")
SCALES = {torch.float32: (1e19, 1e30, 1e38), torch.bfloat16: (1e19, 1e30, 1e38), torch.float64: (1e155, 1e300)}
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, video = torch.randn(3, 4, 8, generator=generator), torch.randn(5, 6, 8, generator=generator)
    return (text / text.abs().amax()).to(dtype), (video / video.abs().amax()).to(dtype)


def outcome(scorer: mg.MultiGrain, text: Tensor, video: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores, and the gradient by the text, in units of what it was scaled by."""
    text = (text.double() * scale).to(text.dtype).requires_grad_()
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    mask[1, 2:] = False
    scores = scorer(mg.Features(word=(text, mask)), mg.Features(frame=video))
    (scores * torch.arange(scores.numel()).view_as(scores)).sum().backward()
    assert text.grad is not None
    return scores.detach(), text.grad.double() * scale


@both_backends
@pytest.mark.parametrize(("dtype", "scale"), [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales])
@pytest.mark.parametrize("aggregator", ["aosm", "max_sim", "mean_mean", "logsumexp"])
def test_long_vectors_have_their_direction(backend, aggregator, dtype, scale):
    scorer = mg.MultiGrain(mg.FrameWord(aggregator), backend=backend)
    text, video = tokens(dtype)
    rounded = (text.double() * scale).to(dtype).double() / scale  # the scale need be no power of two
    scores, gradient = outcome(scorer, text, video, scale)
    expected = outcome(scorer, rounded, video.double())
    close(scores.double(), expected[0].double(), 1e-5)
    if gradient.abs().amax() / scale > torch.finfo(dtype).tiny:  # else it is a denormal number
        tolerance = 0.02 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(gradient, expected[1].double(), atol=tolerance, rtol=tolerance)


@both_backends
def test_vectors_too_short_to_have_a_direction_score_zero(backend):
    scorer = mg.MultiGrain(mg.FrameWord(), backend=backend)
    scores, gradient = outcome(scorer, *tokens(), 1e-30)
    assert not scores.any()
    assert not gradient.any()


def refused(value: object) -> bool:
    return not 1e-20 <= value <= 1e20


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize(
    "temperature",
    [1e-300, 1e-45, 1e-21, 1e-20, 1e-12, 1e-6, 1e6, 1e12, 1e20, 1e21, 1e300, 10**400, float("nan")],
    ids=lambda x: f"{x}"[:9],
)
def test_temperatures_are_right_or_refused(backend, dtype, name, temperature):
    if refused(temperature):
        with pytest.raises(ValueError, match=r"temperature: expected a positive finite number.*, got .{3,100}$"):
            mg.aggregators.build_aggregator(name, temperature=temperature)
        return
    aggregator = mg.aggregators.build_aggregator(name, temperature=temperature)
    scores, gradient = outcome(mg.MultiGrain(mg.FrameWord(aggregator), backend=backend), *tokens(dtype))
    assert scores.isfinite().all()
    assert gradient.isfinite().all()
    if name == "aosm":  # tends to the maximum and to the mean
        limit = mg.MaxMax() if temperature < 1 else mg.MeanMean()
        expected = outcome(mg.MultiGrain(mg.FrameWord(limit), backend="eager"), *tokens(torch.float64))
        close(scores.double(), expected[0], 1e-5)
        close(gradient, expected[1], 1e-4)
    other = outcome(mg.MultiGrain(mg.FrameWord(aggregator), backend="eager"), *tokens(torch.float64))
    # A large sum of exponentials by a large temperature: its rounding is multiplied.
    tolerance = max(1e-5, 1e-6 * temperature) if name == "logsumexp" else 1e-5
    close(scores.double(), other[0].double(), tolerance)
