"""The process's own state: read by no call, and left as it was found."""

import contextlib
import copy
import inspect
import io
import multiprocessing
import pickle
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import clouds, line_cost, random_problem

import exactot
import ipot
from exactot import simplex

X, Y, A, B = clouds(0, 230, 200, 2)
M, a, b = random_problem(1, 20, 15)
HISTOGRAMS = np.random.default_rng(0).uniform(0.1, 1, (12, 2))


def manhattan(x, y):
    return (x[:, None] - y).abs().sum(-1)


def gradient(solve, *inputs):
    """Of the value in the first input."""
    first = torch.from_numpy(inputs[0]).requires_grad_()
    solve(first, *(torch.from_numpy(x) for x in inputs[1:])).value.backward()
    return first.grad


CALLS = {
    "scalings": lambda: ipot.solve(M, a, b, max_iter=40).plan,
    "constant": lambda: ipot.solve(M, a, b, beta=0.1, max_iter=40, growing=False).plan,
    "logarithms": lambda: ipot.solve(M.astype("f4"), beta=1e-6, max_iter=10).plan,
    "float32 tensors": lambda: ipot.solve(torch.from_numpy(X[:, :1] @ Y[:, :1].T).float()).plan,
    "batch": lambda: ipot.solve(np.stack((M, -M)), beta=np.array([0.1, 0.2]), max_iter=40).plan,
    "large": lambda: ipot.solve(np.tile(M.astype("f4"), (30, 40)), max_iter=9).plan,
    "gradient": lambda: gradient(ipot.solve, M, a, b),
    "ipot_WD": lambda: ipot.ipot_WD(a, b, M, 0.5, max_iter=20),
    "ipot_barycenter": lambda: ipot.ipot_barycenter(HISTOGRAMS, line_cost(12), 0.1, None, 90),
    "barycenter, logs": lambda: ipot.ipot_barycenter(HISTOGRAMS, line_cost(12), 1e-4, None, 90),
    "round": lambda: ipot.round_to_marginals(np.abs(M), a, b),
    "small": lambda: exactot.solve(M, a, b).plan,
    "exact": lambda: exactot.solve(X @ Y.T, A, B).plan,
    "exact gradient": lambda: gradient(exactot.solve, X @ Y.T, A, B),
    "sample": lambda: exactot.solve_sample(X, Y, A, B).plan,
    "metric": lambda: exactot.solve_sample(X, Y, metric=manhattan).plan,
    "line": lambda: exactot.solve_sample(X[:, :1], Y[:, :1]).plan,
    "points' gradient": lambda: gradient(exactot.solve_sample, X, Y),
    "barycenter": lambda: exactot.barycenter(HISTOGRAMS, line_cost(12), max_iter=30).histogram,
    "barycenter, tol": lambda: exactot.barycenter(HISTOGRAMS, M[:12, :12], tol=1e-2).histogram,
    "zero": lambda: exactot.solve(np.zeros((40, 30))).plan,
    "grid": lambda: exactot.barycenter(np.ones((9, 8, 2)), grid=1.0, max_iter=9).histogram,
    "program": lambda: exactot.barycenter(HISTOGRAMS, M[:12, :12], exact=True).histogram,
    "free support": lambda: exactot.free_support_barycenter([X, Y], 9, max_iter=2).points,
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "device": lambda: torch.device("meta"),
    "dtype": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "errors": lambda: np.errstate(all="raise"),
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_whatever_torch_is_set_to(name, state):
    if state == "inference" and "gradient" in name:
        pytest.skip("inference mode has no gradients")
    expected = CALLS[name]()
    with STATES[state]():
        found = CALLS[name]()
    if isinstance(expected, tuple):  # the plan, and the losses
        expected, found = expected[0], found[0]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_call_changes_no_generator():
    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002

    before = states()
    for call in CALLS.values():
        call()
    assert states() == before


def test_a_call_changes_no_filter_of_warnings():
    costs = np.random.default_rng(0).random((200, 40, 40))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda cost: exactot.solve(cost).value, costs))
    assert warnings.filters == before
    assert values == exactot.solve(costs).value.tolist()


def test_a_warning_that_is_shown_once_stays_so():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("once")
        for call in (*CALLS.values(), lambda: None):
            warnings.warn("once", UserWarning, stacklevel=1)
            call()
    assert [str(one.message) for one in shown] == ["once"]


def test_a_call_changes_no_figure_and_no_thread():
    figure = plt.figure()
    before = plt.get_fignums(), plt.gcf(), torch.get_num_threads()
    for call in CALLS.values():
        call()
    assert before == (plt.get_fignums(), plt.gcf(), torch.get_num_threads())
    plt.close(figure)


def values(seed):
    """In another process: by torch's threads, where it has them."""
    rng = np.random.default_rng(seed)
    x, y, cost = rng.random((600, 2)), rng.random((600, 2)), rng.random((400, 400))
    return exactot.solve_sample(x, y).value, exactot.solve(cost).value, ipot.solve(cost).value


def test_ctrl_c_does_not_wait_for_a_long_program(monkeypatch):
    """And what the solver raises in its thread is raised to the caller."""
    release = threading.Event()
    monkeypatch.setattr(simplex, "LONG", 0)

    def solver(*_):
        signal.raise_signal(signal.SIGINT)
        release.wait(60)
        return ()

    with pytest.raises(KeyboardInterrupt):
        simplex._interruptible(solver, np.ones(1), np.ones(1))
    assert not release.is_set()
    release.set()
    with pytest.raises(ZeroDivisionError):
        simplex._interruptible(lambda a, b: 1 / 0, np.ones(1), np.ones(1))


def test_a_forked_worker_does_not_wait_for_its_parents_threads():
    expected, threads = [values(seed) for seed in (0, 1)], torch.get_num_threads()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(values, (0, 1)).get(timeout=120)
        counts = pool.map_async(get_num_threads, range(4)).get(timeout=120)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert set(counts) == {threads}  # left as found


def get_num_threads(_):
    return torch.get_num_threads()


RESULTS = {
    "ipot": lambda kind: ipot.solve(kind(M), tol=1e-2),
    "exact": lambda kind: exactot.solve(kind(M), kind(a), kind(b)),
    "batch": lambda kind: exactot.solve(kind(np.stack((M, -M)))),
    "sample": lambda kind: exactot.solve_sample(kind(X), kind(Y)),
    "barycenter": lambda kind: exactot.barycenter(kind(HISTOGRAMS), grid=1.0, max_iter=9),
    "points": lambda kind: exactot.free_support_barycenter([kind(X)], 3, max_iter=1),
}


def make(name):
    return RESULTS[name](np.asarray)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("name", RESULTS)
def test_results_can_be_stored(name, kind):
    result = RESULTS[name](kind)
    again = pickle.loads(pickle.dumps(result))
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    for other in (again, copy.deepcopy(result), torch.load(buffer, weights_only=False)):
        assert type(other) is type(result) and other.value.tolist() == result.value.tolist()
        for field in ("plan", "points", "histogram"):
            if hasattr(result, field):
                np.testing.assert_array_equal(getattr(other, field), getattr(result, field))


def test_results_come_back_from_other_processes():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name, found in zip(RESULTS, pool.map(make, RESULTS)):
            assert found.value.tolist() == make(name).value.tolist()


def test_signatures_survive():
    assert "growing" in inspect.signature(ipot.solve).parameters
    assert "metric" in inspect.signature(exactot.solve_sample).parameters
