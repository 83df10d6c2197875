"""Effect of the rule for ties and of the protocol on a figure, on the same scores."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import multigrain as mg

from style import BLUE, GREEN, ORANGE, panels, plain


def scores(videos: int = 100, captions: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of made-up captions and videos of ten topics, and the video of each caption."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(videos).repeat_interleave(captions)
    topic = torch.randn(videos // 10, 64, generator=generator).repeat_interleave(10, 0)
    video = topic + 0.3 * torch.randn(videos, 64, generator=generator)
    strength = 2 * (0.5 + torch.rand(len(targets), 1, generator=generator))
    text = video[targets] + strength * torch.randn(len(targets), 64, generator=generator)
    grain = mg.VideoSentence()
    return grain(mg.Features(sentence=text), mg.Features(video=video)), targets


def draw() -> Figure:
    """Left: R@1 as scores are rounded. Right: video to text under the two protocols of several captions."""
    figure, [left, right] = panels(1, 2, 8.4, 2.9)
    all_scores, targets = scores()
    square = all_scores[::20]
    digits = (4, 3, 2, 1, 0)
    for ties, colour in (("optimistic", ORANGE), ("pessimistic", GREEN), ("mean", BLUE)):
        rounded = [(square * 10**d).round() / 10**d for d in digits]
        recalls = [mg.retrieval_metrics(x, ties=ties)["t2v"]["R@1"] for x in rounded]
        style = "--" if ties == "mean" else "-"
        left.plot([str(d) for d in digits], recalls, style, color=colour, label=f'ties="{ties}"', marker="o", ms=4)
    plain(left, "R@1 of the same scores, rounded")
    left.set_xlabel("digits kept")
    left.set_ylabel("per cent")
    left.legend(frameon=False)
    for k, (protocol, colour) in enumerate((("all_captions", BLUE), ("group_max", ORANGE))):
        found = mg.retrieval_metrics(all_scores, targets, protocol)["v2t"]
        names = ("R@1", "R@5", "R@10")
        bars = right.bar([i + 0.36 * k - 0.18 for i in range(3)], [found[n] for n in names], 0.34, color=colour)
        bars.set_label(f'protocol="{protocol}"')
        right.set_xticks(range(3), names)
    plain(right, "video to text, 20 captions to a video")
    right.set_yticks(range(0, 101, 20))
    right.set_ylim(0, 124)
    right.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
    return figure
