"""BabyAI pairs: deterministic, coloured, split by sentence, rendered as Minigrid does, and hard to break."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("minigrid")

from minigrid.core.grid import Grid
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.utils.baby_ai_bot import BabyAIBot

from multigrain.data import babyai
from multigrain.data.babyai import Rollouts
from multigrain.data.babyai import cache as babyai_cache
from multigrain.data.babyai import world as babyai_world
from multigrain.data.pairs import frames_of

SMALL = {"pairs": 60, "single": 30, "val": 10, "test": 12, "progress": False}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(babyai_cache, "SHARD", 10)  # workers are forked and see it too


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> babyai.BabyAI:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(babyai_cache, "SHARD", 10)
        return babyai.load(tmp_path_factory.mktemp("babyai"), workers=1, **SMALL)


def same(a: Rollouts, b: Rollouts) -> bool:
    return a.sentences == b.sentences and np.array_equal(a.views[a.steps], b.views[b.steps])


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


class PlainRoom(LevelGen):
    """The same room and language with none of the shortcuts."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__(
            room_size=8, num_rows=1, num_cols=1, num_dists=8, locked_room_prob=0, locations=False,
            action_kinds=("goto", "pickup", "putnext"), instr_kinds=kinds,
        )  # fmt: skip

    rand_obj = babyai_world.ColouredRoom.rand_obj


@pytest.mark.parametrize(("clauses", "kinds"), [("many", ("and", "seq")), ("one", ("action",))])
def test_the_fast_world_and_bot_equal_minigrids_own(clauses, kinds) -> None:
    plain, fast = PlainRoom(kinds), babyai_world.ColouredRoom(clauses)
    compared = 0
    for seed in range(60):
        try:
            mission, views = babyai_world.rollout(plain, seed, (4, 64), BabyAIBot)
        except babyai_world.Skipped as reason:
            with pytest.raises(babyai_world.Skipped, match=str(reason)):
                babyai_world.rollout(fast, seed, (4, 64))
            continue
        fast_mission, fast_views = babyai_world.rollout(fast, seed, (4, 64))
        assert mission == fast_mission
        assert np.array_equal(views, fast_views)
        compared += 1
    assert compared > 40


def test_the_result_does_not_depend_on_the_number_of_workers(data, tmp_path) -> None:
    again = babyai.load(tmp_path, workers=3, **SMALL)
    for name in ("train", "val", "test", "single"):
        assert same(getattr(data, name), getattr(again, name)), name
    assert data.metadata == again.metadata


def test_fewer_pairs_are_the_first_of_more_and_another_seed_gives_others(data, tmp_path) -> None:
    fewer = babyai.load(tmp_path, **{**SMALL, "single": 17})
    assert fewer.single.sentences == data.single.sentences[:17]
    other = babyai.load(tmp_path, **SMALL, seed=1)
    assert other.single.sentences[:10] != data.single.sentences[:10]
    assert other.test.sentences != data.test.sentences


def test_every_object_carries_its_colour_and_rollouts_have_4_to_64_steps(data) -> None:
    colours = {"red", "green", "blue", "purple", "yellow", "grey"}
    for part in (data.train, data.val, data.test, data.single):
        for sentence in part.sentences:
            words = sentence.replace(",", "").split()
            objects = [i for i, word in enumerate(words) if word in {"box", "ball", "key"}]
            assert objects, sentence
            assert all(words[i - 1] in colours for i in objects), sentence
        assert ((part.lengths >= 4) & (part.lengths <= 64)).all()
    joints = [sum(s.count(j) for j in (" and ", ", then ", " after you ")) for s in data.train.sentences]
    assert set(joints) == {1, 2, 3}  # two to four clauses
    assert not any(" and " in s or "then" in s or "after" in s for s in data.single.sentences)


def test_the_last_view_of_a_picked_up_object_shows_it_in_hand(data) -> None:
    codes = {"key": 5, "ball": 6, "box": 7}
    picked = [i for i, sentence in enumerate(data.single.sentences) if sentence.startswith("pick up")]
    assert picked
    for i in picked:
        held = data.single.views[data.single.steps[data.single.offsets[i + 1] - 1]][3, 6]
        assert held[0] == codes[data.single.sentences[i].split()[-1]]


def test_no_sentence_is_in_two_splits_and_held_out_sentences_are_distinct(data) -> None:
    train, val, test = (set(part.sentences) for part in (data.train, data.val, data.test))
    assert not train & val
    assert not train & test
    assert not val & test
    assert (len(data.val), len(data.test)) == (len(val), len(test)) == (10, 12)


def test_splitting_keeps_every_rollout_of_a_training_sentence() -> None:
    sentences = ["a", "b", "a", "c", "d", "b", "e"]
    parts = babyai.split_by_sentence(sentences, val=1, test=1, seed=0)
    held = {sentences[i] for name in ("val", "test") for i in parts[name]}
    assert parts["train"] == [i for i, sentence in enumerate(sentences) if sentence not in held]
    assert parts == babyai.split_by_sentence(sentences, val=1, test=1, seed=0)
    assert len({tuple(babyai.split_by_sentence(sentences, val=1, test=1, seed=s)["test"]) for s in range(9)}) > 1


def rollouts(lengths: list[int]) -> Rollouts:
    """Rollouts whose every step is its own view."""
    total = sum(lengths)
    views = np.zeros((total, 7, 7, 3), np.uint8)
    return Rollouts([f"s{n}" for n in lengths], views, np.arange(total), np.cumsum([0, *lengths]))


def test_sampling_is_uniform_and_includes_the_first_and_the_last() -> None:
    lengths = list(range(1, 65))
    videos = rollouts(lengths)
    for frames in (1, 2, 5, 12):
        rows, mask = videos.sample(range(64), frames)
        assert rows.shape == mask.shape == (64, frames)
        for i, length in enumerate(lengths):
            steps = (rows[i] - videos.offsets[i])[mask[i]]
            assert len(steps) == min(length, frames)
            assert steps[-1] == length - 1
            if frames > 1:
                assert steps[0] == 0
                assert np.abs(steps - np.linspace(0, length - 1, len(steps))).max() <= 0.5
                assert np.unique(steps).size == steps.size
            assert (rows[i][~mask[i]] == rows[i][mask[i]][-1]).all()  # padding repeats the last view


def test_a_batch_renders_each_view_once_and_finds_every_frame(data) -> None:
    indices = [3, 0, 7, 3]
    batch = data.train.batch(indices, max_frames=6)
    rows, mask = data.train.sample(indices, 6)
    assert batch.frames.dtype == torch.uint8
    assert len(batch.frames) == len(np.unique(rows))
    each = torch.from_numpy(babyai.render(data.train.views[rows.ravel()]))
    assert torch.equal(batch.frames[batch.index], each.view(4, 6, 3, 56, 56))
    assert torch.equal(batch.mask, torch.from_numpy(mask))
    assert batch.sentences == [data.train.sentences[i] for i in indices]
    pictures = frames_of(data.train, 3, 6)
    assert np.array_equal(np.moveaxis(pictures, -1, 1), batch.frames[batch.index[0]][batch.mask[0]].numpy())


def test_rendering_equals_minigrids_own(data) -> None:
    rng = np.random.default_rng(0)
    anything = rng.integers(0, (11, 6, 3), (40, 7, 7, 3)).astype(np.uint8)  # doors, goals and lava too
    views = np.concatenate([data.single.views[:150], anything])
    ours = babyai.render(views)
    for view, frame in zip(views, ours, strict=True):
        grid, visible = Grid.decode(view)
        theirs = grid.render(tile_size=8, agent_pos=(3, 6), agent_dir=3, highlight_mask=visible)
        assert np.array_equal(frame.transpose(1, 2, 0), theirs)


def test_what_is_no_view_is_refused() -> None:
    with pytest.raises(ValueError, match=r"views: expected uint8 \[V, 7, 7, 3\], got float64 \[2, 7, 7\]"):
        babyai.render(np.zeros((2, 7, 7)))
    with pytest.raises(ValueError, match="views: expected type, colour and state below"):
        babyai.render(np.full((1, 7, 7, 3), 9, np.uint8))


def huge_header(path: Path) -> None:
    """An array of 10^14 bytes is declared, and none is there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("sentences", "lengths", "observations", "skipped"):
            archive.writestr(f"{name}.npy", header.getvalue())


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sentences.npy", bytes(10**8))


WRONG: dict[str, dict[str, Any]] = {
    "fewer observations": {"observations": np.zeros((3, 7, 7, 3), np.uint8)},
    "a colour that is none": {"observations": lambda x: np.full_like(x, 255)},
    "observations of another kind": {"observations": lambda x: x.astype(np.int64)},
    "lengths of floats": {"lengths": lambda x: x.astype(np.float64)},
    "lengths below one": {"lengths": lambda x: x * 0},
    "a huge length": {"lengths": lambda x: x + 2**62},
    "another number of lengths": {"lengths": lambda x: x[1:]},
    "numbers for sentences": {"sentences": lambda x: np.arange(len(x))},
    "skipped of strings": {"skipped": lambda _: np.array('{"a": "b"}')},
    "skipped in a list": {"skipped": lambda _: np.array("[1]")},
    "skipped without an end": {"skipped": lambda _: np.array("[" * 10_000)},
    "pickled sentences": {"sentences": lambda x: x.astype(object)},
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_contents_of_a_shard_are_seen(what, data, tmp_path) -> None:
    babyai.load(tmp_path, **SMALL)
    victim = shard_files(tmp_path)[2]
    with np.load(victim) as archive:
        arrays = dict(archive)
    for name, change in WRONG[what].items():
        arrays[name] = change(arrays[name]) if callable(change) else change
    np.savez_compressed(victim, **arrays)
    with pytest.raises(babyai_cache.CorruptShardError):
        babyai_cache.read_shard(victim)
    assert same(babyai.load(tmp_path, **SMALL).train, data.train)


@pytest.mark.parametrize("make", [huge_header, bomb, Path.mkdir])
def test_a_shard_that_would_not_fit_or_is_none_is_seen(make, tmp_path) -> None:
    make(tmp_path / "many-00000.npz")
    tracemalloc.start()
    with pytest.raises(babyai_cache.CorruptShardError):
        babyai_cache.read_shard(tmp_path / "many-00000.npz")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_what_a_killed_worker_left_is_removed_once_it_is_old(data, tmp_path) -> None:
    babyai.load(tmp_path, **SMALL)
    victim = shard_files(tmp_path)[0]
    old, young = (victim.with_name(f"{victim.name}.9-{mark}.tmp") for mark in ("0000000a", "0000000b"))
    for file in (old, young):
        file.touch()
    os.utime(old, (0, 0))
    victim.unlink()
    babyai.load(tmp_path, **SMALL)
    assert (old.exists(), young.exists(), victim.exists()) == (False, True, True)


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "text", "short", "foreign"])
def test_a_corrupt_shard_is_regenerated_and_said_so(damage, data, tmp_path, capfd) -> None:
    babyai.load(tmp_path, **SMALL)
    victim, bystander = shard_files(tmp_path)[2], shard_files(tmp_path)[0]
    content, written = victim.read_bytes(), bystander.stat().st_mtime_ns
    middle = len(content) // 2
    victim.write_bytes(
        {
            "truncated": content[:middle],
            "bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
            "text": b"no archive at all",
        }.get(damage, content)
    )
    if damage == "short":
        shard = babyai_cache.read_shard(victim)
        babyai_cache.write_shard(victim, shard._replace(observations=shard.observations[1:]))
    if damage == "foreign":
        np.savez(victim, sentences=np.array(["x"]))
    again = babyai.load(tmp_path, **SMALL)
    said = [line for line in capfd.readouterr().err.splitlines() if "corrupt" in line]
    assert len(said) == 1
    assert str(victim) in said[0]
    assert "regenerating" in said[0]
    assert same(again.train, data.train)
    assert bystander.stat().st_mtime_ns == written


def test_generation_resumes_after_an_interrupt(data, tmp_path, capfd) -> None:
    def interrupt() -> None:
        while len(shard_files(tmp_path)) < 2:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        babyai.load(tmp_path, workers=1, **{**SMALL, "pairs": 400})
    kept = {path: path.stat().st_mtime_ns for path in shard_files(tmp_path)}
    assert 2 <= len(kept) < 43
    assert f"goes on from {len(kept)} of 43 shards" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.tmp"))
    assert same(babyai.load(tmp_path, **SMALL).train, data.train)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_workers_leave_the_interrupt_to_their_parent(data, tmp_path) -> None:
    # Ctrl-C in a terminal reaches the workers too.
    def interrupt() -> None:
        while not shard_files(tmp_path):
            time.sleep(0.005)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert same(babyai.load(tmp_path, **SMALL).train, data.train)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch) -> None:
    shard, path = babyai_cache.make_shard(babyai_cache.ShardId("one", 0), seed=0), tmp_path / "one.npz"
    babyai_cache.write_shard(path, shard)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        babyai_cache.write_shard(path, shard._replace(skipped=shard.skipped + shard.skipped))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_finished_cache_needs_no_worker(data, tmp_path, monkeypatch) -> None:
    babyai.load(tmp_path, **SMALL)
    monkeypatch.setattr(babyai_cache, "_generate", None)
    assert same(babyai.load(tmp_path, **SMALL).test, data.test)


def test_skipped_seeds_are_counted_by_reason(tmp_path, monkeypatch) -> None:
    original = babyai_world.rollout

    def failing(room, seed, steps):
        if seed % 5 == 1:
            raise babyai_world.Skipped("bot raised TypeError")
        return original(room, seed, (1, 64))

    monkeypatch.setattr(babyai_world, "rollout", failing)
    counts = babyai.load(tmp_path, **{**SMALL, "pairs": 40}).metadata["skipped"]
    assert counts["bot raised TypeError"] == 12  # seeds 1, 6 and 11 of each of 4 shards


@pytest.mark.parametrize("error", [AssertionError, TypeError])
def test_a_bot_that_fails_skips_its_seed(error) -> None:
    class Broken(babyai_world.Bot):
        def replan(self, action_taken=None):
            raise error("minigrid's")

    with pytest.raises(babyai_world.Skipped, match=f"bot raised {error.__name__}"):
        babyai_world.rollout(babyai_world.ColouredRoom("one"), 0, (4, 64), Broken)


def test_a_seed_that_loops_for_ever_is_skipped() -> None:
    class Endless(babyai_world.ColouredRoom):
        def validate_instrs(self, instr):
            raise RecursionError  # the original then draws another world, without end

    room = Endless("one")
    with pytest.raises(babyai_world.Skipped, match=r"over 0\.1 s"), babyai_world.time_limit(0.1):
        babyai_world.rollout(room, 0, (4, 64))
    with babyai_world.time_limit(5):
        pass
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def test_what_a_worker_raises_surfaces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(babyai_cache, "STEPS", (65, 64))
    monkeypatch.setattr(babyai_cache, "SEEDS_PER_ROLLOUT", 1)
    with pytest.raises(RuntimeError, match="only 0 of 10 seeds"):
        babyai.load(tmp_path, **SMALL)


def test_minigrid_prints_nothing_and_progress_goes_to_stderr(tmp_path, capfd) -> None:
    babyai.load(tmp_path / "quiet", **SMALL)
    assert capfd.readouterr() == ("", "")
    babyai.load(tmp_path / "loud", **{**SMALL, "progress": True})
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "generating BabyAI pairs: 9/9 shards"


def test_quick_takes_a_tenth(tmp_path) -> None:
    quick = babyai.load(tmp_path, pairs=300, single=100, val=20, test=30, quick=True, progress=False)
    assert (len(quick.single), len(quick.val), len(quick.test)) == (10, 2, 3)
    assert quick.metadata["pairs"] == 30


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"pairs": 0}, ValueError, "pairs: expected a positive integer, got 0"),
        ({"single": -1}, ValueError, "single: expected a positive integer, got -1"),
        ({"val": 2.5}, TypeError, r"val: expected a positive integer, got 2\.5"),
        ({"test": True}, TypeError, "test: expected a positive integer, got True"),
        ({"workers": 0}, ValueError, "workers: expected a positive integer, got 0"),
        ({"seed": -3}, ValueError, "seed: expected an integer of at least 0, got -3"),
        ({"test": 55}, ValueError, r"val, test: expected fewer than the \d+ distinct sentences of 60 pairs"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, kind, message, tmp_path) -> None:
    with pytest.raises(kind, match=message):
        babyai.load(tmp_path, **{**SMALL, **change})


def test_a_bad_number_of_frames_is_named(data) -> None:
    with pytest.raises(ValueError, match="max_frames: expected a positive integer, got 0"):
        data.train.batch([0], max_frames=0)


def test_rollouts_tell_what_their_videos_are(data, tmp_path) -> None:
    again = babyai.load(tmp_path, **SMALL)
    assert again.train.sources == data.train.sources
    swapped = data.train.subset([1, 0, *range(2, len(data.train))])
    assert swapped.sources == [*data.train.sources[1::-1], *data.train.sources[2:]] != data.train.sources


def test_an_unwritable_cache_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache_dir: expected a folder that can be written to, got .*file/cache"):
        babyai.load(tmp_path / "file" / "cache", **SMALL)


def test_without_minigrid_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[demo\]"'):
        babyai.load(tmp_path, **SMALL)
