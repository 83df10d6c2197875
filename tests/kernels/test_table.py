"""Who serves: by argument, by environment, by "auto"; and the errors of those who cannot."""

from __future__ import annotations

import pytest
import torch

import multigrain as mg
from multigrain.kernels import dispatch as table
from multigrain.kernels import fusion
from multigrain.kernels.spec import Unsupported
from tests.kernels.problems import Attentive
from tests.kernels.scorers import pair, same


def served(monkeypatch) -> list[str]:
    """The names of the backends that are asked, as they are asked."""
    seen: list[str] = []

    def watch(name, serve):
        def call(*arguments):
            seen.append(name)
            return serve(*arguments)

        return call

    monkeypatch.setattr(table, "BACKENDS", {name: watch(name, serve) for name, serve in table.BACKENDS.items()})
    return seen


@pytest.mark.parametrize("small", [0, 10**9])
def test_auto_takes_blocks_where_there_is_something_to_gain(small, monkeypatch):
    monkeypatch.delenv("MULTIGRAIN_BACKEND", raising=False)
    monkeypatch.setattr(table, "SMALL", small)
    seen = served(monkeypatch)
    mg.Grain("word", "frame", "aosm")(*pair())
    assert seen == (["eager"] if small else ["blocked"])


def test_the_environment_names_the_backend_and_an_argument_overrules_it(monkeypatch):
    seen = served(monkeypatch)
    grain = mg.Grain("word", "frame", "aosm")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "blocked")
    grain(*pair())
    grain(*pair(), "eager")
    mg.MultiGrain(grain, backend="eager")(*pair())
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "eager")
    mg.MultiGrain(grain)(*pair())
    assert seen == ["blocked", "eager", "eager", "eager"]


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_environment_variable_means_auto(value, monkeypatch):
    monkeypatch.setenv("MULTIGRAIN_BACKEND", value)
    same([mg.Grain("word", "frame", "aosm")(*pair())], [mg.Grain("word", "frame", "aosm")(*pair(), "eager")])


@pytest.mark.parametrize("grain", [mg.FrameWord(), mg.VideoSentence()], ids=["tokens", "vectors"])
def test_an_unknown_backend_is_an_error_that_lists_those_there_are(grain, monkeypatch):
    message = r"backend.*expected one of auto, triton, blocked, eager.*fastest"
    with pytest.raises(ValueError, match=message):
        grain(*pair(), "fastest")
    with pytest.raises(ValueError, match=message):
        mg.MultiGrain(grain, backend="fastest")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"MULTIGRAIN_BACKEND.*expected one of auto, triton, blocked, eager.*fastest"):
        grain(*pair())


@pytest.mark.parametrize("aggregator", ["aosm", "mean_mean", mg.AOSM(query_tokens=7, candidate_tokens=5), Attentive()])
def test_triton_refuses_the_cpu_with_a_reason_and_auto_goes_on(aggregator, monkeypatch):
    grain = mg.Grain("word", "frame", aggregator)
    with pytest.raises(Unsupported, match="triton"):
        grain(*pair(), "triton")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "triton")
    with pytest.raises(Unsupported, match="triton"):
        grain(*pair())
    monkeypatch.delenv("MULTIGRAIN_BACKEND")
    monkeypatch.setattr(table, "SMALL", 0)
    same([grain(*pair()).detach()], [grain(*pair(), "eager").detach()])


def test_auto_falls_back_on_unsupported_and_on_nothing_else(monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    grain = mg.Grain("word", "frame", "aosm")
    expected = grain(*pair(), "eager")

    def raising(error):
        def serve(*_):
            raise error

        return serve

    monkeypatch.setitem(table.BACKENDS, "blocked", raising(Unsupported("no")))
    same([grain(*pair())], [expected], 0.0)
    monkeypatch.setitem(table.BACKENDS, "blocked", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        grain(*pair())


@pytest.mark.parametrize("backend", ["auto", "blocked", "eager"])
def test_sides_that_do_not_fit_are_one_error_whoever_serves(backend):
    text, video = pair()
    grain = mg.FrameWord()
    with pytest.raises(ValueError, match="same width, got 16 and 5"):
        grain(text, mg.Features(frame=torch.randn(3, 2, 5)), backend)
    with pytest.raises(ValueError, match="same device, got cpu and meta"):
        grain(text, video.to("meta"), backend)
    with pytest.raises(ValueError, match=r"word mask: expected shape \[2, 3\], got \[3, 2\]"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(3, 2, dtype=torch.bool)))
    with pytest.raises(ValueError, match="word mask: expected device cpu"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool, device="meta")))
    with pytest.raises(TypeError, match=r"word mask: expected dtype torch\.bool"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(2, 3)))


@pytest.mark.parametrize("settings", [{}, {"query_tokens": 7, "candidate_tokens": 5}], ids=["plain", "mixing"])
def test_hooks_and_overrides_of_an_aggregator_are_honoured(settings):
    """A kernel that replaces a module must not skip what its owner hung on it."""
    text, video = pair()
    assert fusion.fuses(mg.AOSM(**settings), "triton")
    plain = mg.Grain("word", "frame", mg.AOSM(**settings))(text, video, "blocked").detach()

    class Doubled(mg.AOSM):
        def forward(self, sim, query_mask=None, candidate_mask=None):
            return 2 * super().forward(sim, query_mask, candidate_mask)

    hooked, patched = mg.AOSM(**settings), mg.AOSM(**settings)
    hooked.register_forward_hook(lambda module, inputs, scores: 2 * scores)
    original = patched.forward
    patched.forward = lambda *arguments: 2 * original(*arguments)
    for aggregator in (Doubled(**settings), hooked, patched):
        assert not fusion.fuses(aggregator, "triton")
        same([mg.Grain("word", "frame", aggregator)(text, video, "blocked").detach()], [2 * plain], 1e-6)
