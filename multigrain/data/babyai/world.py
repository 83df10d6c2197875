"""Minigrid's side of the BabyAI pairs: the room, the bot that solves it, one rollout.

The world, the language, the verifier and the planner are Minigrid's own. Two subclasses replace only the slow
parts of a rollout, and tests hold them equal to the originals: the view of a room without inner walls is a table
lookup by (position, direction), and the breadth-first search reads its cells directly. Importing this module
imports minigrid.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NamedTuple

# Before pygame, which minigrid imports, looks for a display.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
from minigrid.core.constants import DIR_TO_VEC, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.babyai.core.verifier import ObjDesc
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError
from numpy.typing import NDArray

VIEW = 7
AGENT = (VIEW // 2, VIEW - 1)
ROOM = 8
Cell = tuple[int, int]
OUTSIDE, HIDDEN = ROOM * ROOM, ROOM * ROOM + 1


class Sight(NamedTuple):
    """The cells that are seen from a position and direction: the same for every room without inner walls."""

    cell: NDArray[np.intp]
    """[7, 7] the room's cell at every cell of the view, or OUTSIDE, or HIDDEN"""
    seen: NDArray[np.bool_]
    """[8, 8] the room's cells in view"""


class ColouredRoom(LevelGen):
    """One 8 x 8 room with 8 objects, whose missions name a colour with every object.

    ``clauses="many"`` joins two to four actions by "and", "then", "after you"; ``"one"`` is a single action.
    """

    def __init__(self, clauses: Literal["many", "one"]) -> None:
        super().__init__(
            room_size=ROOM,
            num_rows=1,
            num_cols=1,
            num_dists=8,
            locked_room_prob=0.0,
            locations=False,
            action_kinds=("goto", "pickup", "putnext"),
            instr_kinds={"one": ("action",), "many": ("and", "seq")}[clauses],
        )
        self._sights: dict[tuple[int, int, int], Sight] = {}
        self._encoded: NDArray[np.uint8] = np.zeros((ROOM * ROOM + 2, 3), np.uint8)
        self._encoded_for: tuple[Grid | None, WorldObj | None] = (None, None)

    def rand_obj(self, *_: Any, **__: Any) -> ObjDesc:
        """Draw one of the room's (colour, type) pairs, each as likely as any other.

        It is the distribution of the original's rejection sampling, once descriptions without a colour are refused.
        """
        present = sorted({(thing.color, thing.type) for thing in self.get_room(0, 0).objs})
        color, kind = self._rand_elem(present)
        return ObjDesc(kind, color)

    @property
    def right_vec(self) -> NDArray[np.int64]:
        """[2] the agent's right hand: one direction further, clockwise."""
        return DIR_TO_VEC[(self.agent_dir + 1) % 4]

    def _rand_int(self, low: int, high: int) -> int:
        return int(super()._rand_int(low, high))  # plain integers make the bot's searches faster

    def sight(self) -> Sight:
        """Return the cells that the agent sees from its place."""
        x, y = self.agent_pos
        where = (int(x), int(y), self.agent_dir)
        if where not in self._sights:
            self._sights[where] = self._look()
        return self._sights[where]

    def _look(self) -> Sight:
        visible = self.gen_obs_grid()[1]
        cell = np.full((VIEW, VIEW), OUTSIDE, np.intp)
        seen = np.zeros((ROOM, ROOM), np.bool_)
        for x in range(ROOM):
            for y in range(ROOM):
                at = self.relative_coords(x, y)
                if at is not None:
                    cell[at] = y * ROOM + x
                    seen[x, y] = visible[at]
        cell[~visible] = HIDDEN
        return Sight(cell, seen)

    def gen_obs(self) -> dict[str, Any]:
        """Look up the original's observation: ``image`` [7, 7, 3], ``direction``, ``mission``."""
        # Objects move only through the agent's hands, so the room changes only when the carried object does.
        if self._encoded_for[0] is not self.grid or self._encoded_for[1] is not self.carrying:
            self._encode()
        image = self._encoded[self.sight().cell]
        image[AGENT] = self.carrying.encode() if self.carrying else (OBJECT_TO_IDX["empty"], 0, 0)
        return {"image": image, "direction": self.agent_dir, "mission": self.mission}

    def _encode(self) -> None:
        empty = (OBJECT_TO_IDX["empty"], 0, 0)
        cells = [empty if thing is None else thing.encode() for thing in self.grid.grid]
        self._encoded[:OUTSIDE] = cells
        self._encoded[OUTSIDE] = Wall().encode()
        self._encoded_for = (self.grid, self.carrying)


class Bot(BabyAIBot):
    """Minigrid's bot, with faster eyes and a faster search that visits cells in the same order."""

    mission: ColouredRoom
    vis_mask: NDArray[np.bool_]

    def _process_obs(self) -> None:
        self.vis_mask |= self.mission.sight().seen

    def _breadth_first_search(
        self,
        initial_states: list[tuple[int, int, int, int]],
        accept_fn: Callable[[Cell, WorldObj | None], bool],
        ignore_blockers: bool,
    ) -> tuple[Any, Any, Any]:
        cells = self.mission.grid.grid
        seen: list[list[bool]] = self.vis_mask.tolist()
        came_from: dict[Cell, Cell | None] = {}
        queue: deque[tuple[Cell, int, int, Cell | None]] = deque(
            ((int(i), int(j)), int(di), int(dj), None) for i, j, di, dj in initial_states
        )
        while queue:
            here, di, dj, previous = queue.popleft()
            if here in came_from:
                continue
            came_from[here] = previous
            i, j = here
            cell = cells[j * ROOM + i]
            if accept_fn(here, cell):
                return _trace(here, came_from), here, came_from
            if not seen[i][j] or (cell is not None and (cell.type == "wall" or not ignore_blockers)):
                continue
            for k, m in ((di, dj), (dj, di), (-dj, -di), (-di, -dj)):
                if (i + k, j + m) not in came_from:
                    queue.append(((i + k, j + m), k, m, here))
        return None, None, came_from


def _trace(end: Cell, came_from: dict[Cell, Cell | None]) -> list[Cell]:
    path = [end]
    while (previous := came_from[path[-1]]) is not None:
        path.append(previous)
    return path


class Skipped(Exception):
    """A seed gives no pair; the message is the reason, short enough to count by."""


def rollout(
    room: LevelGen, seed: int, steps: tuple[int, int], bot: type[BabyAIBot] = Bot
) -> tuple[str, NDArray[np.uint8]]:
    """Return the mission and the views [steps, 7, 7, 3] of the bot that solves the world of ``seed``.

    Raises:
        Skipped: the bot failed, or took fewer or more than ``steps`` (first and last view included).
    """
    fewest, most = steps
    views = [room.reset(seed=seed)[0]["image"]]
    planner = bot(room)
    solved = False
    while not solved:
        if len(views) == most:
            raise Skipped(f"more than {most} steps")
        try:
            action = planner.replan()
        except (AssertionError, TypeError, DisappearedBoxError) as error:
            raise Skipped(f"bot raised {type(error).__name__}") from error
        if action == room.actions.done:
            raise Skipped("bot gave up")
        view, reward, _, _, _ = room.step(action)
        views.append(view["image"])
        solved = float(reward) > 0
    if len(views) < fewest:
        raise Skipped(f"fewer than {fewest} steps")
    return room.mission, np.stack(views)


@contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """Raise `Skipped` after ``seconds`` of this process's CPU time.

    CPU time, so that a busy machine does not change which seeds are kept. Where the platform has no such
    timer (Windows), nothing is limited. Main thread only.
    """

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise Skipped(f"over {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def draw_tile(kind: int, color: int, state: int, *, agent: bool, size: int) -> NDArray[np.uint8]:
    """Draw one tile [size, size, 3] of a view like `Grid.render`; visible tiles are highlighted."""
    tile = Grid.render_tile(
        WorldObj.decode(kind, color, state),
        agent_dir=3 if agent else None,
        highlight=kind != OBJECT_TO_IDX["unseen"],
        tile_size=size,
    )
    return tile.astype(np.uint8)  # downsampling leaves fractions, which `Grid.render` truncates too
