"""A barycenter's linear program, by column generation.

The problem of a barycenter q of histograms p_k (k = 1, ..., K) with weights w_k is linear in q and
in the K plans together:

    min sum_k w_k <P_k, C>   over P_k >= 0 with  P_k 1 = q  and  P_k^T 1 = p_k.

Its K n^2 arcs are too many, but a basis uses few. The program is solved (HiGHS) on the arcs that
near-optimal potentials single out: those of optimal plans for the q that is known, and of each row
and column the arcs of least reduced cost C_ij - f_ki - g_kj. Its dual variables price all others.
Those that would improve the solution are added until there are none.
"""

import numpy as np
import scipy.optimize
import scipy.sparse

from exactot.solve import solve

# benchmarks/barycenters.py, which has the time of `exact`, chose these.
ARCS = 6  # of each row and column that a round may take
TOLERANCE = 1e-9  # of reduced costs, in units of a usual cost
LARGEST = 1e6  # cost that is told from a larger one


def solve_barycenter(
    C: np.ndarray, unit: float, p: np.ndarray, weights: np.ndarray, q: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An optimal q (n,) and potentials f (K, n), from near-optimal ones.

    C (n, n) is the cost, of which `unit` is a usual one, p (K, n) the inputs, and weights (K,) sum
    to 1.

    Raises
    ------
    RuntimeError
        If HiGHS fails.
    """
    n = len(C)
    # HiGHS keeps the digits of usual costs if none is much larger.
    C = np.minimum((C - C.min()) / unit, LARGEST)
    f, used = f / unit, np.flatnonzero(weights)
    arcs = []
    for k in used:
        reduced = C - f[k][:, None]
        reduced -= reduced.min(0)
        plan = solve(C, q, p[k]).sparse_plan
        arcs.append(np.union1d(_least_arcs(reduced), plan.row * n + plan.col))
    while True:
        q, f, g = _solve_on(C, p, weights, used, arcs)
        fresh = False
        for i, k in enumerate(used):
            reduced = C - f[k][:, None] - g[k]
            wrong = np.flatnonzero(reduced.ravel() < -TOLERANCE)
            wrong = np.setdiff1d(np.intersect1d(wrong, _least_arcs(reduced)), arcs[i])
            arcs[i], fresh = np.union1d(arcs[i], wrong), fresh or len(wrong) > 0
        if not fresh:
            return q, f * unit


def _least_arcs(reduced: np.ndarray) -> np.ndarray:
    """Flat numbers of the ARCS least entries of each row and of each column."""
    n, m = reduced.shape
    count = min(ARCS, n, m)
    columns = np.argpartition(reduced, count - 1, axis=1)[:, :count]
    rows = np.argpartition(reduced, count - 1, axis=0)[:count]
    return np.union1d(np.arange(n)[:, None] * m + columns, rows * m + np.arange(m))


def _solve_on(
    C: np.ndarray, p: np.ndarray, weights: np.ndarray, used: np.ndarray, arcs: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, f and g of the program on these arcs of the inputs in use."""
    (count, n), blocks, costs = p.shape, [], []
    for k, numbers in zip(used, arcs):
        rows, columns = np.divmod(numbers, n)
        one = (np.ones(len(numbers)), np.arange(len(numbers)))
        shape = (n, len(numbers))
        table = [scipy.sparse.csr_array((one[0], (x, one[1])), shape) for x in (rows, columns)]
        blocks.append(scipy.sparse.vstack(table))
        costs.append(weights[k] * C[rows, columns])
    both = scipy.sparse.vstack((scipy.sparse.eye_array(n), scipy.sparse.csr_array((n, n))))
    matrix = scipy.sparse.hstack(
        (scipy.sparse.block_diag(blocks), -scipy.sparse.vstack([both] * len(used))), format="csc"
    )
    right = np.concatenate([np.concatenate((np.zeros(n), p[k])) for k in used])
    program = {"A_eq": matrix, "b_eq": right, "method": "highs"}
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    objective = np.concatenate((*costs, np.zeros(n)))
    for presolve in (True, False):  # presolve takes masses near 1e-12 for contradictions
        options["presolve"] = presolve
        found = scipy.optimize.linprog(objective, options=options, **program)
        if found.status == 0:
            break
    else:
        raise RuntimeError(f"HiGHS did not solve the barycenter's linear program: {found.message}")
    q = found.x[-n:].clip(0)
    dual = np.zeros((count, 2, n))
    dual[used] = found.eqlin.marginals.reshape(-1, 2, n) / weights[used, None, None]
    return q / q.sum(), dual[:, 0], dual[:, 1]
