"""What a run stands on: its device, its folder, files that are whole or not there, and an orderly
stop."""

import csv
import io
import json
import os
import pickle
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch


def device_name(name: str) -> str:
    """The device of that name, "auto" being a GPU if there is one; ValueError if it is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, dtype=torch.float64, device=torch.Generator(name).device)
    except (RuntimeError, AssertionError, TypeError):  # TypeError: a device without float64
        raise ValueError(f"device: got {name!r}; accepts auto, cpu or a GPU present here") from None
    return name


def summary_writer() -> type:
    """TensorBoard's, an optional requirement; ValueError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard: it is not installed; pip install tensorboard") from None
    return SummaryWriter


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
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes and threads out of a run's folder, by a lock that dies with its holder.

    What a killed process left half-written is cleared first. A folder that is still empty at the
    end is removed.

    Raises
    ------
    ValueError
        If the folder is in use or cannot be written to.
    """
    path = folder / ".lock"
    try:
        file = open(path, "ab")
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    with file:
        if not _locked(file) or not _is_at(path, file):
            raise ValueError(f"{folder} is in use by another process")
        try:
            for left in folder.glob(".*.partial*"):
                left.unlink(missing_ok=True)
            yield
        finally:
            with suppress(OSError):  # Windows keeps an open file, which bars nobody once closed
                path.unlink()
            with suppress(OSError):
                folder.rmdir()


def _locked(file: BinaryIO) -> bool:
    """Whether an open file could be locked; True also on a file system without locks."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the open file is still the one at `path`, not one that its last holder removed."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and put it in place once that succeeded.

    The file at `path` is the old one or the new one at every moment, also through a power cut and
    with several writers.

    Raises
    ------
    ValueError
        If the file cannot be written, as on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, content: dict) -> None:
    """Write numbers, texts, None, lists and dicts of them; ValueError for NaN and infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text)


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Write rows, which may lack some of the last one's columns."""
    with written_whole(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)


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
    """Write tensors, numbers, lists and dicts of them; ValueError if that fails."""
    buffer = io.BytesIO()  # torch's own writer hides what the system says, such as a full disk
    torch.save(state, buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def last_checkpoint(folder: Path, device: torch.device) -> dict | None:
    """The checkpoint to go on from; None in the folder of a run that has not got so far.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, or if the run was finished and has lost it.
    """
    path = folder / "checkpoint.pt"
    if path.exists():
        return load_checkpoint(path, device)
    if (folder / "metrics.json").exists():
        raise ValueError(f"resume: the finished run in {folder} has lost its checkpoint.pt")
    return None


def load_checkpoint(path: str | Path, device: torch.device) -> dict:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    ValueError
        If the file is not a checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise RuntimeError(f"it holds {type(state).__name__}")
        return state
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{path} is not a checkpoint that can be read: {reason}") from None
