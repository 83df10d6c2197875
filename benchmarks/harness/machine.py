"""The provenance of a figure: processor, GPU, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "maxsim-cpu",
    "sentence-transformers",
    "colpali-engine",
    "late-interaction-kernels",
    "flash-maxsim",
)
# What a run writes does not make the code that it measured a different one.
WRITTEN = ("benchmarks/results", "docs/benchmarks.md")


def now() -> str:
    """Date and time to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, load average and, for CUDA, the GPU."""
    found = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "gpu": None,
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9),
            "cuda": torch.version.cuda,
        }
    return found


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of some packages; by default those whose speed is at stake."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def commit() -> str:
    """The commit that was measured, with "-dirty" where the working tree differs; "unknown" without git."""
    changed = _git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in WRITTEN))
    head = _git("rev-parse", "HEAD")
    if head is None or changed is None:
        return "unknown"
    return head + ("-dirty" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    # Cloud vendors hide the model's number from its name.
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
