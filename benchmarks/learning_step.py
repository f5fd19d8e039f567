"""How long is a training step, beside the published loop's and, with a critic, a minimal loop's?

    python -m benchmarks.learning_step

The first table: IPOT here and as published, which update the same generator on the same minibatches
in one process, one loop after the other; median and quartiles of the milliseconds, and the ratio of
the medians. The second: each objective with a critic beside the shortest loop that takes the same
steps of the same networks, in turns of a few updates; median milliseconds of an update, and median
ratio of the turns.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from benchmarks.published import training_step
from benchmarks.table import machine, show, write_csv
from generative.objectives.assignment import PAIRS, WEIGHT, Assignment
from generative.objectives.objective import descend
from learning_demo import Config as Settings
from learning_demo import Training, config_for

WARM_UP = 10  # steps that are not counted


@dataclass
class Config:
    """Settings of the benchmark."""

    data_type: str = "gaussian"  # target
    steps: int = 100  # timed steps of each loop
    turns: int = 12  # timed turns of each loop with a critic
    output: str = "outputs/benchmarks/learning_step.csv"  # the first table as CSV
    critics_output: str = "outputs/benchmarks/critic_step.csv"  # the second


def _ours(run: Training) -> None:
    run.objective.update(run)


def _published(run: Training) -> None:
    config, optimizer = run.config, run.objective.optimizer
    z, y = run.noise(), run.points()
    training_step(run.generator, optimizer, z, y, config.beta, config.num_proximal)


def milliseconds(step: Callable[[Training], None], settings: Settings, count: int) -> list[float]:
    """Times of `count` steps of a new run."""
    run, times = Training(settings), []
    for _ in tqdm(range(WARM_UP + count), desc=step.__name__.strip("_"), leave=False):
        started = time.perf_counter()
        step(run)
        times.append(1e3 * (time.perf_counter() - started))
    return times[WARM_UP:]


def generator_step(run: Training, loss: Callable[[Tensor], Tensor], noise: Tensor) -> None:
    """A step of the generator through a critic at rest."""
    run.objective.critic.requires_grad_(False)
    descend(run.objective.optimizer, loss(run.generator(noise)))
    run.objective.critic.requires_grad_(True)


def fake(run: Training, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return run.generator(noise)


def minimal_wgan(run: Training) -> None:
    f, config = run.objective.critic, run.config
    for _ in range(config.n_critic):
        loss = f(fake(run, run.noise())).mean() - f(run.points()).mean()
        descend(run.objective.critic_optimizer, loss)
        for weight in f.parameters():
            weight.data.clamp_(-config.clip, config.clip)
    generator_step(run, lambda x: -f(x).mean(), run.noise())


def minimal_wgan_gp(run: Training) -> None:
    f, config = run.objective.critic, run.config
    for _ in range(config.n_critic):
        x, y = fake(run, run.noise()), run.points()
        u = torch.rand(len(x), 1)
        z = (u * y + (1 - u) * x).requires_grad_()
        slope = torch.autograd.grad(f(z).sum(), z, create_graph=True)[0]
        penalty = config.penalty * (slope.norm(dim=1) - 1).square().mean()
        descend(run.objective.critic_optimizer, f(x).mean() - f(y).mean() + penalty)
    generator_step(run, lambda x: -f(x).mean(), run.noise())


def minimal_uotm(run: Training) -> None:
    T, v, config = run.generator, run.objective.critic, run.config
    y = run.points()
    x = run.noise()[:, : y.shape[1]]

    def cost(samples):
        return config.tau / 2 * (x - samples).square().sum(1)

    T.requires_grad_(False)
    for _ in range(config.n_critic):
        z = torch.cat((x, run.noise()[:, y.shape[1] :]), 1)
        samples = fake(run, z)
        loss = (v(samples) - cost(samples)).expm1().mean() + (-v(y)).expm1().mean()
        z.requires_grad_()
        T.eval()
        slope = torch.autograd.grad(v(T(z)).sum(), z, create_graph=True)[0][:, : y.shape[1]]
        T.train()
        loss = loss + config.penalty * slope.square().sum(1).mean()
        descend(run.objective.critic_optimizer, loss)
    T.requires_grad_(True)
    z = torch.cat((x, run.noise()[:, y.shape[1] :]), 1)
    generator_step(run, lambda samples: (cost(samples) - v(samples)).mean(), z)


def minimal_assignment(run: Training) -> None:
    G, psi, own, data = run.generator, run.objective.critic, run.objective, run.data
    if own.pairs is None:
        for _ in range(run.config.n_critic):
            minibatches = [run.noise() for _ in range(own.minibatches(len(data)))]
            x, price = torch.cat([fake(run, z) for z in minibatches]), psi(data)
            height = ((price - price.min()).detach() / WEIGHT).sqrt()[:, None]
            tree = cKDTree(torch.cat((data, height), 1).numpy())
            points = torch.cat((x, 0 * x[:, :1]), 1).numpy()
            taken = torch.tensor(tree.query(points, workers=torch.get_num_threads())[1])
            descend(own.critic_optimizer, price.mean() - price[taken].mean())
        own.pairs, own.place = (torch.cat(minibatches), taken), 0
    z, taken = (of_pairs[own.place : own.place + PAIRS] for of_pairs in own.pairs)
    own.place += PAIRS
    descend(own.optimizer, (G(z) - data[taken]).square().sum(1).mean())


MINIMAL = {
    "wgan": (minimal_wgan, 7),
    "wgan-gp": (minimal_wgan_gp, 7),
    "uotm": (minimal_uotm, 7),
    "assignment": (minimal_assignment, 32),
    "assignment-fast": (minimal_assignment, 7),
}
"""The loops, and how many updates a turn has: for assignment the first walk, with its rounds."""


def turn(step: Callable[[Training], None], run: Training, updates: int) -> float:
    """Milliseconds of an update."""
    if isinstance(run.objective, Assignment):
        run.objective.walks, run.objective.pairs = 0, None
    started = time.perf_counter()
    for _ in range(updates):
        step(run)
        run.updates += 1
    return 1e3 * (time.perf_counter() - started) / updates


def beside_minimal_loops(config: Config) -> list[dict]:
    rows = []
    for name, (minimal, updates) in tqdm(MINIMAL.items(), desc="critics", leave=False):
        settings = config_for(name, data_type=config.data_type, device="cpu")
        runs = [Training(settings) for _ in range(2)]
        for run in runs:
            run.updates = 28  # past the first of wgan, which take 100 steps
        times = np.array(
            [
                (turn(_ours, runs[0], updates), turn(minimal, runs[1], updates))
                for _ in range(2 + config.turns)
            ]
        )[2:]
        rows.append(
            {
                "objective": name,
                "ms": float(np.median(times[:, 0])),
                "minimal loop, ms": float(np.median(times[:, 1])),
                "times as long": float(np.median(times[:, 0] / times[:, 1])),
            }
        )
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    settings = Settings(data_type=config.data_type, device="cpu")
    steps = {"ours": _ours, "published loop": _published}
    times = {name: milliseconds(step, settings, config.steps) for name, step in steps.items()}
    rows = []
    for name, spans in times.items():
        low, middle, high = np.percentile(spans, (25, 50, 75))
        ratio = np.median(times["published loop"]) / middle
        rows.append(
            {
                "step": name,
                "ms, median": float(middle),
                "quartiles": f"{low:.1f} to {high:.1f}",
                "times as fast": float(ratio),
            }
        )
    print(
        f"{machine()}\nbatch {settings.batchsize}, {settings.num_proximal} iterations, "
        f"{torch.get_num_threads()} threads"
    )
    show(rows)
    write_csv(rows, config.output)
    critics = beside_minimal_loops(config)
    show(critics)
    write_csv(critics, config.critics_output)


if __name__ == "__main__":
    main()
