"""The tests that compare numbers or train, under settings in which a processor rounds as another one does.

    python -m tests.anywhere                # all settings, a line of counts for each: `make test-anywhere`
    python -m tests.anywhere sse4.1 mkl     # those of continuous integration

Products round by the order of their sums, which is that of the vectors and threads at hand. A test that is green under
all of them rests on no processor's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, dict[str, str]] = {
    "plain": {},
    # Two workers of two threads on two cores: threads that wait busily would keep each other from working.
    "threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "avx2": {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},  # no AVX-512, no products in bf16
    "sse4.1": {"DNNL_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},  # the narrowest vectors
    "mkl": {"MKL_CBWR": "COMPATIBLE"},  # products in fp32 and fp64 by code for any processor
    "busy": {},  # beside a busy loop on each core
}
# Neither compare numbers nor train: files, pages, refusals, imports, packaging; and Triton's interpreter, which
# computes in NumPy, whatever the settings. A new file is run unless it is named here.
LEFT_OUT = (
    "tests/data",
    "tests/kernels/test_triton.py",
    "tests/test_architecture.py",
    "tests/test_cli.py",
    "tests/test_docs.py",
    "tests/test_errors.py",
    "tests/test_faults.py",
    "tests/test_files.py",
    "tests/test_fuzz.py",
    "tests/test_hostile.py",
    "tests/test_inert.py",
    "tests/test_printing.py",
    "tests/test_release.py",
    "tests/test_report.py",
    "tests/test_viz.py",
    "tests/test_writers.py",
)
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with this process


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """So many processes that do nothing, as fast as they can."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(name: str, workers: str) -> bool:
    """Whether the tests are green under a setting; a line says how many."""
    environment = {"OMP_NUM_THREADS": "1", **SETTINGS[name]}
    said = " ".join(f"{key}={value}" for key, value in environment.items())
    print(f"{name} ({said}): ", end="", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, *(f"--ignore={path}" for path in LEFT_OUT)]
    # torch.compile would find the graphs of other vectors in the cache that all processes share, and fail on them.
    with TemporaryDirectory() as cache, busy(os.cpu_count() or 1 if name == "busy" else 0):
        environment = os.environ | environment | {"TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    *lines, counts = done.stdout.splitlines() or [f"pytest ended with {done.returncode}"]
    print(counts.strip("= "), flush=True)
    if done.returncode:
        print(*lines, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), help=f"some of: {', '.join(SETTINGS)}")
    parser.add_argument("-n", "--workers", default="2", help="of pytest (default 2)")
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(SETTINGS):
        parser.error(f"settings: expected some of {', '.join(SETTINGS)}, got {', '.join(sorted(unknown))}")
    if gone := [path for path in LEFT_OUT if not (ROOT / path).exists()]:
        parser.error(f"LEFT_OUT: expected files of the tests, got {', '.join(gone)}")
    green = [run(name, arguments.workers) for name in arguments.settings]
    return 0 if all(green) else 1


if __name__ == "__main__":
    raise SystemExit(main())
