"""Run folders, and files that are either whole or not there."""

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def new_run_folder(parent: str | Path, name: str) -> Path:
    """Create `parent/name`, or `parent/name-2`, `-3`, ... where that exists already.

    Raises
    ------
    ValueError
        If no folder can be made or written to there.
    """
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = Path(parent) / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder
    except OSError as error:
        raise ValueError(f"cannot write to {parent}: {error.strerror}") from None


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and put it in place once that succeeded.

    The file at `path` is the old one or the new one at every moment, also through a power cut.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def ctrl_c_asks() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets, so that work stops where it can be saved.

    A second one stops it at once.
    """
    asked = threading.Event()

    def ask(*_):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # no other one gets signals
        yield asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write tensors, numbers, lists and dicts of them."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path, device: torch.device) -> dict:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    ValueError
        If the file is not a checkpoint.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint that can be read: {reason}") from None
