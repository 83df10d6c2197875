"""Files are written whole or not at all, read back only as they were written, by one writer at a time."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from multigrain import files

HOLD = "import sys; from multigrain import files\nwith files.lock(sys.argv[1]): print('held', flush=True); input()"


@contextmanager
def full_disk(size: int = 1000) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writes fail with the system's own error."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_takes_its_place_whole_and_readable_by_others(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"after")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "before"
    files.write_lines(tmp_path / "a", ["after", "\ud800"])
    assert (tmp_path / "a").read_text() == "after\n\\ud800\n"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_one_error_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    files.save_tensors(path, {"x": torch.ones(2)})
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"a\.pt") as caught:
        files.save_tensors(path, {"x": torch.ones(10_000)})
    assert (caught.value.filename, path.read_bytes(), os.listdir(tmp_path)) == (str(path), before, ["a.pt"])
    files.append_lines(tmp_path / "log", ["one"])
    with full_disk(), pytest.raises(OSError, match="log"):
        files.append_lines(tmp_path / "log", ["two" * 1000])
    assert (tmp_path / "log").read_text() == "one\n"


@pytest.mark.parametrize("sha256", [True, False])
def test_any_flipped_bit_of_a_tensor_is_noticed(tmp_path: Path, sha256: bool) -> None:
    path = tmp_path / "a.pt"
    files.save_tensors(path, {"x": torch.full((4,), 1.0), "y": [1, "two"]})
    noted = files.digest(path) if sha256 else None
    assert files.load_tensors(path, sha256=noted)["y"] == [1, "two"]
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 1.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        files.load_tensors(path, sha256=noted)


def test_a_tensor_that_is_marked_as_a_folder_is_not_left_to_chance(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    files.save_tensors(path, {"x": torch.full((4,), 1.0)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2", content.index(b"data/0") + 100)
    while content[entry + 46 : entry + 46 + 13] != b"archive/data/":
        entry = content.index(b"PK\1\2", entry + 4)
    content[entry + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match="or marked ones"):
        files.load_tensors(path)


def test_only_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    torch.save({"x": subprocess.Popen}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        files.load_tensors(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match="compressed"):
        files.load_tensors(tmp_path / "bomb.pt")
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (("pipe", "no regular file"), ("", "a folder")):
        with pytest.raises(ValueError, match=expected):
            files.load_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is none"):
        files.load_tensors(tmp_path / "none")


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_would_overflow_the_stack_is_refused(tmp_path: Path, archive: bool) -> None:
    """A key that is a tuple in a tuple, 200,000 deep: hashing it ends the process."""
    hostile = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    path = tmp_path / "a.pt"
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (("a/data.pkl", hostile), ("a/byteorder", b"little"), ("a/version", b"3\n")):
                entry = zipfile.ZipInfo(name)
                file.writestr(entry, content)
                entry.external_attr = 0
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        first = content.index(b"\x80\x02}", content.index(b".\x80\x02M") + 1)
        path.write_bytes(content[:first] + hostile)
    with pytest.raises(ValueError, match="at most 50,000 tuples"):
        files.load_tensors(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested less deeply"),
        ('{"a": 1, "a": 2}', "'a' more than once"),
        ("{", "Expecting"),
        (b"\xff", "UTF-8"),
    ],
)
def test_json_that_says_nothing_sure_is_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"a\.json: .*{expected}"):
        files.read_json(tmp_path / "a.json")
    files.write_json(tmp_path / "a.json", {"a": [1]})
    assert files.read_json(tmp_path / "a.json") == json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}


def test_a_second_writer_is_refused_by_its_number(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} on "), files.lock(tmp_path):
            pass
        other.kill()
    with files.lock(tmp_path), files.lock(tmp_path / "a.jsonl"):  # a killed writer holds nothing
        pass
    assert os.listdir(tmp_path) == []


def test_a_thread_may_take_its_lock_again_and_no_other_may(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with files.lock(tmp_path):
                pass
        except BlockingIOError as error:
            refused.append(str(error))

    with files.lock(tmp_path):
        with files.lock(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert ["another thread" in line for line in refused] == [True]
    other()
    assert len(refused) == 1
