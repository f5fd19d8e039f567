"""Files are whole or not there, and folders are never shared."""

import multiprocessing
import os
import time

import pytest
import torch

from generative.checkpoints import load_checkpoint, new_run_folder, save_checkpoint, written_whole

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
