"""The machine and the versions that something was measured with: no names of hosts, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("numpy", "llvmlite", "scipy", "torch", "safetensors", "distributed", "ipython")


def described() -> str:
    """Return one line on the machine and one on the versions."""
    parts = [processor(), f"{os.cpu_count()} cores", *memory(), system()]
    versions = [f"Python {platform.python_version()}", *filter(None, map(version, PACKAGES))]
    return f"{', '.join(parts)}. {', '.join(versions)}."


def system() -> str:
    """Return the system with the first two numbers of its version."""
    numbers = re.match(r"\d+(\.\d+)?", platform.release())
    return f"{platform.system()} {numbers[0] if numbers else ''}".strip()


def version(package: str) -> str:
    """Return a package and its version; empty where it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """Return what the system calls the processor."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8", check=False
        )
        return f"{asked.stdout.strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def memory() -> list[str]:
    """Return how much memory it has, where the system tells."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return []
    return [f"{size / 2**30:.0f} GiB of memory"]
