"""Pictures: which frame and which word made a match, with what weight; and training curves.

    viz.explain(model, "a dog catches a frisbee", "clip.mp4").savefig("why.png")

Needs the extra ``viz``.
"""

from .pictures import Coarse, Series, Weights, curves, explain, explain_features, similarity

__all__ = ["Coarse", "Series", "Weights", "curves", "explain", "explain_features", "similarity"]
