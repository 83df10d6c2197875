"""Pictures of the frames and words that made a match, with their weights; and training curves.

    viz.explain(model, "a dog catches a frisbee", "clip.mp4").savefig("why.png")

Needs the extra ``viz``.
"""

from .pictures import Coarse, Series, Weights, curves, explain, explain_features, similarity

__all__ = ["Coarse", "Series", "Weights", "curves", "explain", "explain_features", "similarity"]
