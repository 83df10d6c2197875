"""Share of queries whose best video changes when similarities are rounded, by temperature."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import multigrain as mg

from style import BLUE, GREEN, ORANGE, panels, plain

TEMPERATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def changed(temperature: float) -> tuple[float, float, float]:
    """Per cent of 240 queries with another best candidate than in fp64: bf16 and fp16 similarities, ours."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randn(240, 1, 64, generator=generator)
    words = (topic + 4 * torch.randn(240, 8, 64, generator=generator)).bfloat16()
    frames = (topic + 4 * torch.randn(240, 12, 64, generator=generator)).bfloat16()
    text, video = mg.Features(word=words), mg.Features(frame=frames)
    aggregator = mg.AOSM(temperature)
    grain = mg.Grain("word", "frame", aggregator)
    exact = grain.similarity(text.to(dtype=torch.float64), video.to(dtype=torch.float64))
    best = aggregator(exact).argmax(1)
    rounded = [aggregator(exact.to(dtype).float()).argmax(1) for dtype in (torch.bfloat16, torch.float16)]
    mine = grain(text, video).argmax(1)
    bf16, fp16, ours = (100 * float((found != best).double().mean()) for found in (*rounded, mine))
    return bf16, fp16, ours


def draw() -> Figure:
    """Three curves."""
    figure, [axes] = panels(1, 1, 6.4, 3.0)
    curves = list(zip(*(changed(t) for t in TEMPERATURES), strict=True))
    names = ("similarities rounded to bf16", "similarities rounded to fp16", "multigrain, bf16 features")
    for name, curve, colour in zip(names, curves, (ORANGE, GREEN, BLUE), strict=True):
        axes.semilogx(TEMPERATURES, curve, color=colour, label=name, marker="o", markersize=4)
    plain(axes)
    axes.set_xlabel("temperature of AOSM")
    axes.set_ylabel("queries with another\nfirst video, per cent")
    axes.set_ylim(bottom=-0.3)
    axes.legend(frameon=False)
    return figure
