"""Cells of a table that take minutes each: run side by side, kept, and not run again."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from generative.runs import written_whole


def end_with(parent: int) -> None:
    """Make this process end soon after its parent, which may be killed within a cell."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kept(path: Path, find: Callable[[], dict]) -> dict:
    """What was found and is kept in a file; it is found and written now if there is none."""
    if not path.exists():
        found = find()
        with written_whole(path) as whole:
            whole.write_text(json.dumps(found))
    return json.loads(path.read_text())


def run_cells(
    function: Callable[..., dict], cells: Mapping[str, tuple], folder: Path, jobs: int
) -> list[dict]:
    """What a function finds for each cell, a name and arguments, in `jobs` processes.

    A cell is kept in the folder, as NAME.json, and read from there if it is there already, so that
    a run that was stopped goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in cells}
    missing = [name for name, path in paths.items() if not path.exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, end_with, (os.getpid(),)) as pool:
        running = {pool.submit(function, *cells[name]): paths[name] for name in missing}
        for done in tqdm(as_completed(running), total=len(missing), unit="cell"):
            kept(running[done], done.result)
    return [json.loads(path.read_text()) for path in paths.values()]
