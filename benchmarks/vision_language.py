"""Transport between words and image regions, as vision-language models call it.

    python -m benchmarks.vision_language

Embeddings of a batch share some directions, and a part of them is padding; cosine costs, float32,
beta 0.5. `as published` is the iteration in the form in which UNITER's file has it: the plan is
formed in every step. The table has the time of 50 steps in both forms, that of a certified gap of
1e-3 by `ipot.optimal_transport_dist` and of the exact distance by `exactot.solve`, and by how much
each distance exceeds the exact one, relative, in the mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import Tensor

import exactot
import ipot
from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds, rest

MEDIAN = 5, np.median  # of the timed calls


@dataclass
class Config:
    """Settings of the benchmark."""

    batches: tuple[int, ...] = (64, 256)
    words: tuple[int, ...] = (40, 60)  # at most, for the batch of the same place
    regions: tuple[int, ...] = (30, 100)
    width: int = 768  # of an embedding
    steps: int = 50
    tol: float = 1e-3
    seed: int = 0
    output: str = "outputs/benchmarks/vision_language.csv"  # the table as CSV


def embeddings(count: int, sizes: tuple[int, int], config: Config) -> tuple[Tensor, ...]:
    """Words, regions, and where they are padding."""
    rng = torch.Generator().manual_seed(config.seed)
    shared, batch = (
        torch.randn(count, 12, config.width, generator=rng),
        torch.arange(count)[:, None],
    )
    vectors = (
        shared[batch, torch.randint(12, (count, n), generator=rng)]
        + 0.7 * torch.randn(count, n, config.width, generator=rng)
        for n in sizes
    )
    pads = (
        torch.arange(n) >= torch.randint(n // 3, n + 1, (count, 1), generator=rng) for n in sizes
    )
    return *vectors, *pads


def as_published(cost: Tensor, a: Tensor, b: Tensor, beta: float, steps: int) -> Tensor:
    """Plans (B, m, n); weights are 0 at padding, where a huge number keeps the scalings finite."""
    kernel = torch.exp(-cost / beta).transpose(1, 2)
    inside = (a[:, None] > 0) & (b[:, :, None] > 0)
    plan, kernel, left = inside.float(), kernel * inside, a[:, :, None]
    none_a, none_b = (1e4 * (w == 0)[:, None] for w in (a, b))
    size_a, size_b = ((w > 0).sum(1).view(-1, 1, 1) for w in (a, b))
    for _ in range(steps):
        product = kernel * plan
        right = 1 / (size_b * (product @ left).transpose(1, 2) + none_b)
        left = 1 / (size_a * (right @ product) + none_a)
        plan = right.transpose(1, 2) * product * left
        left = left.transpose(1, 2)
    return plan * inside


def measure(count: int, sizes: tuple[int, int], config: Config) -> list[dict]:
    x, y, x_pad, y_pad = embeddings(count, sizes, config)
    a, b = ((~pad).float() / (~pad).sum(1, keepdim=True) for pad in (x_pad, y_pad))
    joint = x_pad[:, :, None] | y_pad[:, None]
    cost = ipot.cost_matrix_cosine(x, y).masked_fill(joint, 0)
    options = {"iteration": config.steps}

    def published() -> Tensor:
        plan = as_published(cost, a, b, 0.5, config.steps)
        return (plan.transpose(1, 2) * cost).sum((1, 2))

    def ours() -> Tensor:
        masks = (~x_pad).sum(1), x_pad, (~y_pad).sum(1), y_pad, joint
        plan = ipot.ipot(cost, *masks, 0.5, config.steps, 1)
        return (plan.transpose(1, 2) * cost).sum((1, 2))

    calls = {
        f"as published, {config.steps} steps": published,
        f"ipot.ipot, {config.steps} steps": ours,
        f"ipot.optimal_transport_dist, {config.steps} steps": lambda: ipot.optimal_transport_dist(
            x, y, x_pad, y_pad, **options
        ),
        f"ipot.optimal_transport_dist, tol {config.tol:g}": lambda: ipot.optimal_transport_dist(
            x, y, x_pad, y_pad, tol=config.tol
        ),
        "exactot.solve": lambda: exactot.solve(cost, a, b).value,
    }
    exact, rows = exactot.solve(cost.double(), a.double(), b.double()).value, []
    for name, call in calls.items():
        rest()
        span, found = milliseconds(call, *MEDIAN)
        rows.append(
            {
                "batch": f"{count} x {sizes[0]} x {sizes[1]}",
                "what": name,
                "ms": span,
                "mean cost / exact - 1": float((found.double() / exact).mean()) - 1,
            }
        )
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    cells = zip(config.batches, zip(config.words, config.regions))
    rows = [row for count, sizes in cells for row in measure(count, sizes, config)]
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
