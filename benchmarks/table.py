"""Print a benchmark's table, write it as CSV, and name the machine that made it."""

import csv
import os
import platform
from pathlib import Path

import numpy
import ot
import torch

from generative.runs import written_whole


def machine() -> str:
    """One line: processor, cores, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return (
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {numpy.__version__}, POT {ot.__version__}"
    )


def show(rows: list[dict]) -> None:
    """Print rows that share their keys as an aligned table."""
    texts = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(text[k]) for text in texts) for k in range(len(rows[0]))]
    for text in texts:
        print("  ".join(cell.rjust(width) for cell, width in zip(text, widths)))


def write_csv(rows: list[dict], path: str | Path) -> None:
    """Write the rows, making the folder where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"Written to {path}")


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
