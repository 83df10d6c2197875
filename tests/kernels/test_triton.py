"""The triton backend: its cases under Triton's interpreter, in a process of its own, and on CUDA.

The interpreter is chosen by an environment variable that Triton reads when kernels are first imported, so the two
cannot share a process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multigrain.kernels.spec import Operand, Spec, Unsupported

HERE = Path(__file__).parent
CASES = [str(HERE / name) for name in ("triton_cases.py", "triton_mixed_cases.py")]
ROOT = HERE.parents[1]


def _run(**environment: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "TRITON_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *CASES],
        cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.timeout(900)
def test_under_the_interpreter():
    pytest.importorskip("triton")
    _run(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.cuda
@pytest.mark.timeout(3600)
def test_on_the_device():
    pytest.importorskip("triton")
    _run()


TYPES = {
    "*i32": ("q_index", "c_index", "q_order", "c_order", "c_lengths"),
    "*fp32": (
        *("q_scale", "c_scale", "q_weights", "c_weights", "factor", "q_partial", "c_partial", "grad"),
        *("q_mixing", "c_mixing", "row_y", "row_norm", "by_row_y", "col_y", "col_norm", "by_col_y"),
    ),
    "fp32": ("steep", "ratio", "unit", "share"),
}
BOTH_SOFT = {"INNER": "softmax", "OUTER": "softmax"}
KERNELS = {  # the module of each, that of its tiling, and constants of its own
    "scores": ("triton.kernels", "triton.launch", BOTH_SOFT),
    "slopes": ("triton.kernels", "triton.launch", BOTH_SOFT),
    "levels": ("triton.mixed_kernels", "triton.mixed", {}),
    "mixed_slopes": ("triton.mixed_kernels", "triton.mixed", {}),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_for_hopper_without_one(kernel, dtype, tmp_path, monkeypatch):
    """Down to machine code, with the compiler that Triton ships: AOSM of 32 words and 12 frames."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels, launch, constants = KERNELS[kernel]
    kernels, launch = (importlib.import_module(f"multigrain.kernels.{name}") for name in (kernels, launch))
    tiling = launch.TILINGS[kernel, 2 if dtype == "bf16" else 4]
    constants = constants | {
        "ROW": True, "COL": True, "MASKED": True, "SINGLE": True,
        "ITEMS_Q": tiling.rows // 32, "SLOTS_Q": 32, "ITEMS_C": tiling.cols // 16, "SLOTS_C": 16,
        "DEPTH": tiling.depth, "EVEN": True, "GROUP": 8, "PRECISION": "ieee" if dtype == "bf16" else "tf32x3",
    }  # fmt: skip
    function = getattr(kernels, f"{kernel}_kernel")
    types = {name: kind for kind, names in TYPES.items() for name in names}
    types |= dict.fromkeys(("q", "c"), f"*{dtype}") | {"out": "*fp32" if kernel == "scores" else f"*{dtype}"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in ("dim", "pitch")]
    compiled = triton.compile(
        ASTSource(
            function,
            signature,
            constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tiling.num_warps, "num_stages": tiling.num_stages},
    )
    assert "wgmma" in compiled.asm["ptx"]  # on the tensor cores
    assert "cp.async" in compiled.asm["ptx"]  # in a pipeline
    assert compiled.metadata.shared <= 227 * 1024


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves the CPU")
def test_cpu_tensors_are_not_served():
    from multigrain.kernels.triton import scores as fused

    operand = Operand(torch.randn(2, 3, 4), None, None, True)
    with pytest.raises(Unsupported, match=r"CUDA device|not installed"):
        fused.forward(operand, operand, Spec("max", 1.0, "max", 1.0, False))
