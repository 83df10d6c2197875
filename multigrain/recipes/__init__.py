"""Published systems as compositions of the parts of this library: one function each, for raw features of any encoders.

    recipe = mg.recipes.build("drl", dim=512)
    loss = recipe(text, video)
    scores = recipe.scores(text, video)

Settings that several share, out of whose range a ValueError names them:

    dim                     D, the width of the features
    max_frames              N, the most frames of a video that an encoder of frames takes
    depth, heads            layers of a transformer and its attention heads, None: one for each 64 of D
    temperature             of the aggregator, or the fixed one of the loss
    queue_size, momentum    of the queues of keys, and of the encoders that make them (see `momentum_update`)
"""

from ..heads.video import Encode, video_head
from .base import About, Recipe, about, build, names, register_recipe
from .cross import albef, clipbert, matching_head, taco
from .dual import align, clip, clip4clip, frozen_in_time, wenlan
from .late import colbert, drl, filip, ts2net, ucofia, video_colbert, xclip
from .pooled import hero, query_scoring, x_pool

__all__ = [
    "About",
    "Encode",
    "Recipe",
    "about",
    "albef",
    "align",
    "build",
    "clip",
    "clip4clip",
    "clipbert",
    "colbert",
    "drl",
    "filip",
    "frozen_in_time",
    "hero",
    "matching_head",
    "names",
    "query_scoring",
    "register_recipe",
    "taco",
    "ts2net",
    "ucofia",
    "video_colbert",
    "video_head",
    "wenlan",
    "x_pool",
    "xclip",
]
