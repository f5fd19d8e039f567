"""Files are whole or not there, and folders are never shared."""

import errno
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from generative.runs import (
    claimed,
    load_checkpoint,
    new_run_folder,
    save_checkpoint,
    write_json,
    written_whole,
)
from generative.settings import plain

CPU = torch.device("cpu")


def test_folders_are_new_each_time(tmp_path):
    names = [new_run_folder(tmp_path / "deep" / "down", "gaussian").name for _ in range(3)]
    assert names == ["gaussian", "gaussian-2", "gaussian-3"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        new_run_folder(tmp_path / "file", "gaussian")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), written_whole(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half-way")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["metrics.json"]
    with written_whole(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["metrics.json"]


def _write_for_ever(path):
    number = 0
    while True:
        number += 1
        save_checkpoint(path, {"number": number, "tensor": torch.full((500, 500), number)})


def test_a_kill_while_writing_loses_nothing(tmp_path):
    path = tmp_path / "checkpoint.pt"
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        save_checkpoint(path, {"number": 0, "tensor": torch.zeros(500, 500)})
        process = context.Process(target=_write_for_ever, args=(path,))
        process.start()
        deadline = time.monotonic() + 60
        while load_checkpoint(path, CPU)["number"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        state = load_checkpoint(path, CPU)
        assert state["number"] > 0 and bool((state["tensor"] == state["number"]).all())


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)


def test_a_shorter_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"tensor": torch.zeros(100)})
    whole = path.read_bytes()
    for size in range(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a checkpoint"):
            load_checkpoint(path, CPU)


def test_two_writers_do_not_break_each_other(tmp_path):
    path, failed = tmp_path / "checkpoint.pt", []

    def write(number):
        try:
            for _ in range(20):
                save_checkpoint(path, {"tensor": torch.full((100000,), number)})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(load_checkpoint(path, CPU)["tensor"].unique()) == 1
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"number": 1})

    def full(self, data):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot write .*checkpoint\.pt: No space left"):
        save_checkpoint(path, {"number": 2})
    assert load_checkpoint(path, CPU) == {"number": 1} and os.listdir(tmp_path) == [path.name]


def test_numbers_that_json_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"w1": float("nan")})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value, kept",
    [
        (np.int64(4), 4),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array(3), 3),
        (torch.tensor(0.25), 0.25),
        (Path("a b/c"), "a b/c"),
        (torch.device("cpu"), "cpu"),
        ("text", "text"),
    ],
)
def test_settings_are_plain(value, kept):
    assert plain(value) == kept and type(plain(value)) is type(kept)
    assert json.loads(json.dumps(plain(value))) == kept


def _hold(folder, held):
    with claimed(folder):
        held.set()
        time.sleep(600)


def test_a_folder_has_one_user_and_a_kill_frees_it(tmp_path):
    (tmp_path / "config.json").touch()
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(ValueError, match="is in use by another process"), claimed(tmp_path):
        pass
    process.kill()
    process.join()
    (tmp_path / ".0.partial.pt").touch()
    with claimed(tmp_path):
        assert not list(tmp_path.glob("*.partial*"))
    assert os.listdir(tmp_path) == ["config.json"]


def test_threads_are_kept_out_and_empty_folders_removed(tmp_path):
    folder = new_run_folder(tmp_path, "gaussian")
    with claimed(folder):
        with pytest.raises(ValueError, match="in use"), claimed(folder):
            pass
        with pytest.raises(ValueError, match="in use"), claimed(folder):
            pass
    assert not folder.exists()
