"""BabyAI views as pictures: Minigrid draws each kind of tile once, a frame is a table look-up per tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE = 8
"""Pixels of a tile: a view of 7 x 7 tiles is a frame of 56 x 56."""

# A tile is an object type, a colour and a state, with or without the agent on it.
KINDS = (11, 6, 3)
_CODES = 11 * 6 * 3
_AGENT = (3, 6)
# Eight pixels of one channel are one 64-bit word, so that a frame is put together word by word.
_words = np.zeros((2 * _CODES, 3, TILE), np.uint64)
_drawn = np.zeros(2 * _CODES, np.bool_)


def render(views: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw views [V, 7, 7, 3] as frames [V, 3, 56, 56] uint8.

    With ``grid, visible = Grid.decode(view)``, a frame is Minigrid's own
    ``grid.render(8, agent_pos=(3, 6), agent_dir=3, highlight_mask=visible)``.

    Raises:
        ValueError: not uint8 [V, 7, 7, 3], or a value that is no object type, colour or state.
    """
    if views.ndim != 4 or views.shape[1:] != (7, 7, 3) or views.dtype != np.uint8:
        raise ValueError(f"views: expected uint8 [V, 7, 7, 3], got {views.dtype} {list(views.shape)}")
    if (views >= np.array(KINDS, np.uint8)).any():
        raise ValueError(f"views: expected type, colour and state below {KINDS}, got {views.max((0, 1, 2))}")
    kind = views.astype(np.int16)
    code = (kind[..., 0] * KINDS[1] + kind[..., 1]) * KINDS[2] + kind[..., 2]
    code[:, _AGENT[0], _AGENT[1]] += _CODES
    for new in np.flatnonzero((np.bincount(code.ravel(), minlength=2 * _CODES) > 0) & ~_drawn):
        _words[new] = _tile_words(int(new))
        _drawn[new] = True
    frames = np.empty((len(views), 3, 7, TILE, 7), np.uint64)
    for start in range(0, len(views), 64):  # a block's words stay in the processor's cache
        words = _words[code[start : start + 64]]  # [views, column, row, channel, line]
        frames[start : start + 64] = words.transpose(0, 3, 2, 4, 1)
    return frames.view(np.uint8).reshape(len(views), 3, 7 * TILE, 7 * TILE)


def _tile_words(code: int) -> NDArray[np.uint64]:
    """Return the lines [3, 8] of a tile that Minigrid draws."""
    from .world import draw_tile

    agent, kind = divmod(code, _CODES)
    kind, state = divmod(kind, KINDS[2])
    tile = draw_tile(*divmod(kind, KINDS[1]), state, agent=bool(agent), size=TILE)
    return np.ascontiguousarray(tile.transpose(2, 0, 1)).view(np.uint64)[..., 0]
