"""How far from optimal approximate plans are, by `exactot.certify_sample`, on the same clouds.

    python -m benchmarks.certificates

Two Gaussian clouds one standard deviation apart, uniform weights, squared distance. The excess
`cost / exact - 1` may be negative where a plan's marginals are off, by `astray`, a share of the
mass. `certified gap` is that of the plan once these are mended: by no more than this share is its
cost too high. Seconds are the method's, without the certificate's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ot
import tyro
from scipy.sparse import sparray
from tqdm import tqdm

import exactot
from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds, rest
from exactot.couplings import pairs

Plan = np.ndarray | sparray


@dataclass
class Config:
    """Settings of the benchmark."""

    n: int = 4096  # points in each cloud
    dimensions: tuple[int, ...] = (2, 64)
    tol: float = 1e-4  # of the bound that a certificate finds
    seed: int = 0
    output: str = "outputs/benchmarks/certificates.csv"  # the table as CSV


def bsp(x: np.ndarray, y: np.ndarray) -> Plan:
    return np.asarray(ot.bsp.compute_bspot_bijection(x, y)[1])


def least_slice(x: np.ndarray, y: np.ndarray) -> Plan:
    found = ot.sliced.min_sliced_transport_plan(x, y, n_projections=100, seed=0, dense=False)
    return found[0]


def mean_of_slices(x: np.ndarray, y: np.ndarray) -> Plan:
    found = ot.sliced.expected_sliced_plan(x, y, n_projections=100, seed=0, dense=False)
    return found[0]


def sinkhorn(share: float) -> Callable[[np.ndarray, np.ndarray], Plan]:
    """With a regularisation of this share of the mean cost."""

    def plan(x: np.ndarray, y: np.ndarray) -> Plan:
        M = ot.dist(x, y)
        options = {"method": "sinkhorn_log", "numItermax": 200, "warn": False}
        return ot.sinkhorn([], [], M, share * M.mean(), **options)

    return plan


def low_rank(x: np.ndarray, y: np.ndarray) -> Plan:
    Q, R, g = ot.lowrank.lowrank_sinkhorn(x, y, rank=20, init="kmeans", warn=False)
    return (Q / g) @ R.T


def minibatches(size: int) -> Callable[[np.ndarray, np.ndarray], Plan]:
    """One exact plan for each batch of the points as they come."""

    def plan(x: np.ndarray, y: np.ndarray) -> Plan:
        parts = ((k, slice(k, k + size)) for k in range(0, len(x), size))
        return np.concatenate([k + pairs(x[part], y[part])[1] for k, part in parts])

    return plan


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Plan]] = {
    "BSP-OT, 64 plans": bsp,
    "best of 100 slices": least_slice,
    "mean of 100 slices": mean_of_slices,
    "Sinkhorn, reg 0.1": sinkhorn(0.1),
    "Sinkhorn, reg 0.01": sinkhorn(0.01),
    "Sinkhorn, reg 0.001": sinkhorn(0.001),
    "low-rank Sinkhorn, rank 20": low_rank,
    "minibatches of 64": minibatches(64),
    "minibatches of 512": minibatches(512),
    "exactot": lambda x, y: exactot.solve_sample(x, y).sparse_plan,
}


def measure(d: int, config: Config) -> list[dict]:
    rng = np.random.default_rng(config.seed)
    x, y = rng.standard_normal((2, config.n, d))
    y[:, 0] += 1
    exact, rows = exactot.solve_sample(x, y), []
    for name, method in tqdm(METHODS.items(), desc=f"d = {d}", unit="method"):
        rest()
        span, plan = milliseconds(lambda method=method: method(x, y))
        found = exactot.certify_sample(x, y, plan, potentials=exact.potentials, tol=config.tol)
        rows.append(
            {
                "d": d,
                "plan": name,
                "seconds": span / 1e3,
                "astray": found.marginal_error,
                "cost / exact - 1": found.cost / float(exact.value) - 1,
                "certified gap": found.relative_gap,
            }
        )
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows = [row for d in config.dimensions for row in measure(d, config)]
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
