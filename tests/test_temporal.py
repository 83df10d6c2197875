from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from multigrain.heads.temporal import TemporalLSTM, TemporalTransformer
from multigrain.heads.transformer import QuickGELU, Transformer
from multigrain.models import TemporalConfig


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))


LENGTHS = [5, 2, 1, 3]


def test_lstm_is_packed_and_residual(frames: Tensor):
    torch.manual_seed(0)
    encoder = TemporalLSTM(8)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(frames, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    hidden = nn.utils.rnn.pad_packed_sequence(encoder.lstm(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(encoder(frames, mask), frames + hidden)
    torch.testing.assert_close(encoder(frames)[0], encoder(frames, mask)[0])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_lstm_reads_no_padding_wherever_it_is(frames: Tensor, poison: float):
    torch.manual_seed(0)
    encoder = TemporalLSTM(8)
    mask = torch.tensor([[True] * 5, [False, True, False, True, False], [False] * 5, [False, False, True, True, True]])
    spoiled = torch.where(mask[..., None], frames, poison).requires_grad_()
    out = encoder(spoiled, mask)
    torch.testing.assert_close(out[1, mask[1]], encoder(frames[1:2, mask[1]])[0])
    torch.testing.assert_close(out[3, mask[3]], encoder(frames[3:, mask[3]])[0])
    out[mask].sum().backward()
    assert spoiled.grad is not None
    assert torch.isfinite(spoiled.grad).all()
    assert (spoiled.grad[~mask] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_blocks_take_their_activation_and_eps(frames: Tensor):
    assert isinstance(Transformer(8, 1, 2, quick_gelu=True).blocks[0].mlp[1], QuickGELU)  # type: ignore[index,union-attr]
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    torch.manual_seed(0)
    coarse = Transformer(8, 1, 2, norm_eps=10.0)
    fine = Transformer(8, 1, 2, norm_eps=1e-12)
    fine.load_state_dict(coarse.state_dict())
    assert not torch.allclose(coarse(frames), fine(frames))


def test_there_may_be_more_positions_than_frames(frames: Tensor):
    encoder = TemporalTransformer(8, 1, 2, 5, positions=20)
    assert encoder.position.shape == (20, 8)
    assert encoder(frames).shape == frames.shape
    with pytest.raises(ValueError, match="frames: expected at most 5 frames"):
        encoder(frames[:, [0, 1, 2, 3, 4, 4]])
    with pytest.raises(ValueError, match="max_frames: expected at most 4 frames"):
        TemporalTransformer(8, 1, 2, 5, positions=4)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="temporal kind: expected one of none, transformer, lstm; got 'gru'"):
        TemporalConfig(kind="gru")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_first_token_alone_is_that_of_all(frames: Tensor, depth: int, masked: bool):
    torch.manual_seed(0)
    transformer = Transformer(frames.shape[-1], depth, 2).double()
    mask = torch.rand(frames.shape[:2]) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    grads = []
    for first in (lambda x: transformer.first(x, mask), lambda x: transformer(x, mask)[:, 0]):
        x = frames.double().requires_grad_()
        out = first(x)
        grads.append([out, *torch.autograd.grad(out.square().sum(), [x, *transformer.parameters()])])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
