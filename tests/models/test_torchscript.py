"""Archives of TorchScript, read as data: what torch.jit.load would give, and nothing done that they say."""

from __future__ import annotations

import contextlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multigrain.models.state import read_state
from multigrain.models.torchscript import is_torchscript, read_torchscript
from tests.models.clips import tiny_clip, torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class _Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4, bias=False)
        self.register_buffer("counts", torch.arange(6).view(2, 3).T)
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("bytes", torch.arange(5, dtype=torch.uint8)[1:4])
        self.plain = torch.zeros(2)  # neither a parameter nor a buffer
        self.numbers, self.words = [1, 2], {"a": 1.5}

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.plain.sum()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = _Leaf()
        self.second = self.first
        self.narrow = nn.Parameter(torch.randn(2, 5).half()[:, 1:3])
        self.brain = nn.Parameter(torch.randn(3).bfloat16())
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.ModuleList([nn.ReLU()])[0])
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.first.linear.weight
        self.device, self.others = torch.device("cpu"), [torch.ones(1)]
        self.register_buffer("wide", torch.randn(1, 4).expand(3, 4))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.first(x)) + self.tied(x) + torch.ones(4) * 3


def _archives(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    paths = [folder / f"{name}.pt" for name in ("scripted", "traced", "frozen", "clip")]
    torch.jit.script(_Net()).save(str(paths[0]))
    torch.jit.trace(_Net().eval(), torch.randn(2, 3)).save(str(paths[1]))
    torch.jit.freeze(torch.jit.script(_Net().eval())).save(str(paths[2]))
    torchscript(tiny_clip().state_dict(), paths[3])
    return paths


def test_the_state_dict_is_that_of_torch_jit_load(tmp_path: Path):
    for path in _archives(tmp_path):
        expected, found = torch.jit.load(path).state_dict(), read_torchscript(path)
        assert is_torchscript(path)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride()), name
    assert found.keys() >= {"visual.proj", "context_length"}


def test_tensors_that_share_their_numbers_share_them_again(tmp_path: Path):
    state = read_torchscript(_archives(tmp_path)[0])
    addresses = {state[name].data_ptr() for name in ("first.linear.weight", "second.linear.weight", "tied.weight")}
    assert len(addresses) == 1


# What follows writes archives by hand. `T` is a tensor of 4 numbers in the file data/0.
_CODE = 'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n'


class _Name:
    def __init__(self, path: str) -> None:
        self.module, _, self.name = path.rpartition(".")


def _pickled(value: object) -> bytes:
    """The opcodes of nested tuples, dicts, numbers and strings; _Name: a global; a list: [function, *args] called."""
    if isinstance(value, _Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if isinstance(value, list):
        return _pickled(value[0]) + _pickled(tuple(value[1:])) + b"R"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(part) for item in value.items() for part in item) + b"u"
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")


def _module(state: object) -> bytes:
    return b"\x80\x02c__torch__\nM\n)\x81" + _pickled(state) + b"b."


def _storage(kind: str = "FloatStorage", key: object = "0", count: object = 4) -> bytes:
    return _pickled(("storage", _Name(f"torch.{kind}"), key, "cpu", count)) + b"Q"


def _tensor(offset: object = 0, shape: object = (4,), stride: object = (1,), **storage: Any) -> bytes:
    rest = b"".join(map(_pickled, (offset, shape, stride, False, ())))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage(**storage) + rest + b"tR"


def _with(tensor: bytes) -> bytes:
    return b"\x80\x02c__torch__\nM\n)\x81}(" + _pickled("w") + tensor + b"ub."


def _write(path: Path, data: bytes, code: str = _CODE, compress: bool = False, **more: bytes) -> Path:
    files = {"data.pkl": data, "data/0": struct.pack("4f", 1, 2, 3, 4), "code/__torch__.py": code.encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in {**files, "constants.pkl": b"\x80\x02).", **more}.items():
            archive.writestr(f"m/{name}", content)
    return path


def test_an_archive_written_by_hand_is_read(tmp_path: Path):
    state = read_torchscript(_write(tmp_path / "a.pt", _with(_tensor(shape=(2, 2), stride=(1, 2)))))
    assert {name: value.tolist() for name, value in state.items()} == {"w": [[1, 3], [2, 4]]}


_DEEP = b"\x80\x02c__torch__\nM\n)\x81}(" + b")" + b"\x85" * 300_000 + b"K\x01ub."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_with(_tensor(shape=(5,))), "a part of its 4 numbers"),
        (_with(_tensor(shape=(2, 2), stride=(3, 1))), "a part of its 4 numbers"),
        (_with(_tensor(offset=1)), "a part of its 4 numbers"),
        (_with(_tensor(offset=5, shape=(0,))), "a part of its 4 numbers"),
        (_with(_tensor(count=10**9)), "a part of its 4 numbers"),
        (_with(_tensor(kind="DoubleStorage")), "a part of its 2 numbers"),
        (_with(_tensor(stride=(-1,), offset=3)), "expected sizes and strides"),
        (_with(_tensor(shape=(-4,))), "expected sizes and strides"),
        (_with(_tensor(shape=(1 << 62,), stride=(0,))), "expected sizes and strides"),
        (_with(_tensor(shape=(True,))), "expected sizes and strides"),
        (_with(_tensor(shape=(4, 1))), "expected sizes and strides"),
        (_with(_tensor(shape=(1 << 40,), stride=(0,))), "no larger than the file"),
        (_with(_tensor(kind="QInt8Storage")), "QInt8Storage"),
        (_with(_tensor(key="../data.pkl")), "There is no item named"),
        (_with(_pickled([_Name("builtins.eval"), "1"])), "expected tensors, got builtins.eval"),
        (_with(b"K\x01"), "no attribute"),
        (_module((1, 2)), "an object that restores itself"),
        (_DEEP, "plain values"),
        (b"\x80\x02]q\x00h\x00aK\x01.", "no attribute"),
        (b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b".", ""),  # an array of so many bytes
        (b"\x80\x02c__torch__\nM\nr\xff\xff\xff\xff)\x81}b.", ""),  # remembered under the number four billion
        (b"\x80\x02c__torch__\nM\n}b.", "__setstate__"),  # the state of a class
        (b"", ""),
        (b"\x80\x02.", ""),
    ],
)  # fmt: skip
def test_a_hostile_archive_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str):
    path = _write(tmp_path / "evil.pt", data)
    with pytest.raises(ValueError, match=r"evil\.pt") as caught:
        read_state(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_numbers_that_are_compressed_or_cut_are_refused(tmp_path: Path):
    for path in (
        _write(tmp_path / "packed.pt", _with(_tensor()), compress=True),
        _write(tmp_path / "order.pt", _with(_tensor()), byteorder=b"big"),
        _write(tmp_path / "code.pt", _with(_tensor()), code="#" * (1 << 24)),
        _write(tmp_path / "none.pt", _with(_tensor()), code="class M:\n"),
    ):
        with pytest.raises(ValueError, match=path.name):
            read_state(path)
    content = _write(tmp_path / "flipped.pt", _with(_tensor())).read_bytes()
    at = content.index(struct.pack("4f", 1, 2, 3, 4))
    (tmp_path / "flipped.pt").write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_state(tmp_path / "flipped.pt")
    (tmp_path / "cut.pt").write_bytes(content[:-30])
    assert not is_torchscript(tmp_path / "cut.pt")


def _loop(lines: int) -> bytes:
    """Modules of which each holds the next one twice."""
    parts = b"".join(
        b"c__torch__\nM\n)\x81}(" + _pickled("a") + b"h" + bytes([i]) + _pickled("b") + b"h" + bytes([i]) + b"ub"
        + b"q" + bytes([i + 1]) for i in range(lines)
    )  # fmt: skip
    return b"\x80\x02c__torch__\nM\n)\x81}bq\x00" + parts + b"."


def test_modules_in_themselves_or_in_ever_more_come_to_an_end(tmp_path: Path):
    with pytest.raises(ValueError, match="no more than the archive holds"):
        read_state(_write(tmp_path / "more.pt", _loop(60)))
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + _pickled("a") + b"h\x00ub."
    with pytest.raises(ValueError, match="recursion"):
        read_state(_write(tmp_path / "itself.pt", itself))


class _Acting(nn.Module):
    """Writes into a file as torch.jit.load restores it."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim, self.view = victim, torch.zeros(4, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.victim, self.training = state
        self.view = torch.from_file(state[0], True, 4, dtype=torch.uint8)
        self.view[:] = 33

    def forward(self, x: Tensor) -> Tensor:
        return x


def acting(path: Path, victim: Path) -> Path:
    """An archive that acts on another file where it is opened by torch.jit.load."""
    torch.jit.script(_Acting(str(victim))).save(str(path))
    return path


def test_what_an_archive_says_about_restoring_it_is_not_done(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = acting(tmp_path / "evil.pt", victim)
    with pytest.raises(ValueError, match="an object that restores itself"):
        read_state(path)
    assert victim.read_text() == "mine"
    torch.jit.load(path)  # would have
    assert victim.read_text() == "!!!!"


def test_many_numbers_in_few_bytes_are_refused_in_files_of_every_kind(tmp_path: Path):
    wide = torch.zeros(1).half().expand(10**11)
    torch.save({"w": wide}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="no larger than the file"):
        read_state(tmp_path / "wide.pt")


def test_any_bytes_give_tensors_or_one_line(tmp_path: Path):
    whole = _archives(tmp_path)[0].read_bytes()
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    edits: list[Callable[[bytearray], object]] = [
        lambda data: data.__setitem__(draw(len(data)), draw(256)),
        lambda data: data.__delitem__(slice(draw(len(data)), None)),
        lambda data: data.__setitem__(slice(at := draw(len(data)), at + 8), bytes(8)),
    ]
    path = tmp_path / "mutant.pt"
    for i in range(60):
        data = bytearray(whole)
        edits[i % 3](data)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            read_state(path)
