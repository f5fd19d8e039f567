"""Several processes train as one does: the same plans, weights and files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from generative.objectives import OBJECTIVES
from generative.objectives.plan import FollowPlan

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"data_size": 600, "batchsize": 64, "epochs": 1000, "device": "cpu", "seed": 3}
CASES = {
    **{name: {"objective": name, "data_type": "ring"} for name in OBJECTIVES},
    "debiased": {"objective": "ipot", "data_type": "moons", "debiased": True},
    "slices": {"objective": "ipot", "data_type": "digits", "space": "patches", "directions": 8},
    "pixels": {"objective": "wgan-gp", "data_type": "digits", "space": "pixels", "g_dim": 8},
    "latents": {"objective": "ot-cfm", "data_type": "digits", "autoencoder_steps": 20},
}
for case in CASES.values():
    if issubclass(OBJECTIVES[case["objective"]], FollowPlan):
        case["updates_per_plan"] = 1
UPDATES = 20
# In double precision: rounding of single precision grows to the size of the weights in 20 updates.
TRAIN = """
import torch
torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
torch.set_default_dtype(torch.float64)

import json, sys
import learning_demo
from generative import ranks
from generative.objectives.plan import FollowPlan
from generative.run_settings import settled
from learning_demo import Config, Training

learning_demo.new_eye = Training.new_yardstick = lambda *_, **__: None  # nothing is measured
cases, updates, path = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
found = {}
with ranks.joined(cuda=False):
    for name, fields in cases.items():
        run = Training(*settled(Config(**fields)))
        while run.steps < updates:
            run.run_epoch()
        destination = None
        if isinstance(run.objective, FollowPlan):
            shape = 2, 64, run.batches.data.shape[1]
            rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            rows = *(ranks.own(x) for x in rows), None
            options = {"rng": run.batches.rng}
            destination = ranks.of_all(run.objective.of_patches, *rows, **options)[0]
            destination = ranks.gathered(destination)
        found[name] = {
            "destination": destination,
            "weights": {k: v.detach().clone() for k, v in run.generator.state_dict().items()},
            "loss": torch.stack([step["loss"] for step in run.logged]),
            "rng": run.batches.rng.get_state(),
        }
    x = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0))
    x = x if ranks.count() == 1 else x[5 * ranks.rank() : 5 + 5 * ranks.rank()]  # 5 and 3 rows
    layer, x = torch.nn.BatchNorm1d(3), x.requires_grad_()
    y = ranks.normalised_by_all(torch.nn.Sequential(layer))(x)
    (y**3).sum().backward()
    found["norm"] = [y.detach(), x.grad, layer.running_mean, layer.running_var]
    torch.save(found, f"{path}{ranks.rank()}.pt")
"""


def environment(rank, world, port):
    return os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
    }  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process and each of two find, by case."""
    folder, answers = tmp_path_factory.mktemp("ranks"), {}
    cases = {name: SMALL | fields for name, fields in CASES.items()}
    for world in (1, 2):
        port, path = free_port(), folder / f"of{world}_"
        words = [sys.executable, "-c", TRAIN, json.dumps(cases), str(UPDATES), str(path)]
        workers = [
            subprocess.Popen(words, env=environment(rank, world, port)) for rank in range(world)
        ]
        assert [worker.wait(timeout=300) for worker in workers] == [0] * world
        answers[world] = [torch.load(f"{path}{rank}.pt") for rank in range(world)]
    return answers


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(trained, case):
    (one,), (first, second) = trained[1], trained[2]
    if one[case]["destination"] is not None:  # of the same samples: bit for bit
        for other in (first, second):
            assert (other[case]["destination"] == one[case]["destination"]).all()
    for name, weight in one[case]["weights"].items():
        assert weight.dtype in (torch.float64, torch.int64)
        for other in (first, second):
            torch.testing.assert_close(other[case]["weights"][name], weight, rtol=0, atol=1e-6)
    for name, weight in first[case]["weights"].items():
        if "running" not in name:
            assert (second[case]["weights"][name] == weight).all()
    mean = (first[case]["loss"] + second[case]["loss"]) / 2
    torch.testing.assert_close(mean, one[case]["loss"], rtol=1e-6, atol=1e-6)
    assert (first[case]["rng"] == one[case]["rng"]).all()
    assert (second[case]["rng"] == one[case]["rng"]).all()


def test_norms_count_the_rows_of_each_process(trained):
    """One process has 5 rows and the other 3: outputs, gradients and statistics are those of 8."""
    (one,), (first, second) = trained[1], trained[2]
    for k in range(2):
        both = torch.cat((first["norm"][k], second["norm"][k]))
        torch.testing.assert_close(both, one["norm"][k], rtol=1e-12, atol=1e-12)
    for k in (2, 3):
        for other in (first, second):
            torch.testing.assert_close(other["norm"][k], one["norm"][k], rtol=1e-12, atol=1e-12)


def torchrun(*words, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [*map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )  # fmt: skip


DEMO = [ROOT / "learning_demo.py", "--no-show", "--data-size", "600", "--batchsize", "64"]


def of_rank(agent, rank):
    """The process number of a worker of torchrun."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            variables = (status.parent / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == agent and f"RANK={rank}".encode() in variables:
            return int(status.parent.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_a_killed_process_is_started_again_and_the_run_ends_as_without(tmp_path):
    words = [*DEMO, "--epochs", "60", "--plot-interval", "10", "--output-dir"]
    with torchrun("--max-restarts", "1", *words, tmp_path / "killed", cwd=tmp_path) as run:
        checkpoint = tmp_path / "killed" / "gaussian" / "checkpoint.pt"
        until = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(of_rank(run.pid, 1), signal.SIGKILL)
        text = run.communicate(timeout=120)[0]
        assert run.returncode == 0 and "Resuming" in text
    with torchrun(*words, tmp_path / "whole", cwd=tmp_path) as run:
        run.communicate(timeout=120)
    assert not (tmp_path / "killed" / "gaussian-2").exists()
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_others_end_where_one_is_killed(tmp_path):
    with torchrun(*DEMO, "--epochs", "10000", "--output-dir", tmp_path, cwd=tmp_path) as run:
        until = time.monotonic() + 60
        while not (tmp_path / "gaussian" / "checkpoint.pt").exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(of_rank(run.pid, 1), signal.SIGKILL)
        started = time.monotonic()
        text = run.communicate(timeout=60)[0]
        assert run.returncode != 0 and time.monotonic() - started < 30
    assert "another one has ended" in text


def test_a_minibatch_has_to_be_shared_out(tmp_path):
    words = [*DEMO[:-1], "63", "--output-dir", tmp_path]
    with torchrun(*words, cwd=tmp_path) as run:
        text = run.communicate(timeout=60)[0]
    assert (
        run.returncode and "a multiple of the 2 processes" in text and not any(tmp_path.iterdir())
    )


def history(folder):
    return (folder / "gaussian" / "history.csv").read_text().splitlines()


def alone(*words, cwd):
    """One process, without torchrun."""
    command = [sys.executable, *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    subprocess.run(command, cwd=cwd, env=variables, check=True, capture_output=True)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """It ends as one that was not interrupted, but for rounding."""
    again = [DEMO[0], "--no-show", "--resume", tmp_path / "gaussian"]
    alone(*DEMO, "--output-dir", tmp_path, "--lr-factor", "1", "--epochs", "2", cwd=tmp_path)
    several(*again, "--epochs", "4", cwd=tmp_path)
    alone(*again, "--epochs", "6", cwd=tmp_path)
    whole = tmp_path / "whole"
    alone(*DEMO, "--output-dir", whole, "--lr-factor", "1", "--epochs", "6", cwd=tmp_path)
    last, expected = (
        [float(x) for x in history(folder)[-1].split(",")] for folder in (tmp_path, whole)
    )
    assert last == pytest.approx(expected, rel=1e-3)


def several(*words, cwd):
    """Two processes, by torchrun."""
    with torchrun(*words, cwd=cwd) as run:
        text = run.communicate(timeout=120)[0]
        assert run.returncode == 0, text


def test_processes_stop_together_where_time_is_limited(tmp_path):
    several(*DEMO, "--seconds", "2", "--output-dir", tmp_path, cwd=tmp_path)
    metrics = json.loads((tmp_path / "gaussian" / "metrics.json").read_text())
    assert metrics["steps"] > 5
