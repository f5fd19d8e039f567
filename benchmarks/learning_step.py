"""How long is a training step, beside the published loop's and, with a critic, a minimal loop's?

    python -m benchmarks.learning_step

The first table: IPOT here and as published, which update the same generator on the same minibatches
in one process, one loop after the other; median and quartiles of the milliseconds, and the ratio of
the medians. The second: each objective with a critic beside the shortest loop that takes the same
steps of the same networks, in turns of seven updates (a walk of `assignment-fast`); median
milliseconds of an update, and median ratio of the turns.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from scipy.spatial import cKDTree
from tqdm import tqdm

from benchmarks.published import training_step
from benchmarks.table import machine, show, write_csv
from generative.objectives.objective import descend
from learning_demo import Config as Training
from learning_demo import Training as Run
from learning_demo import with_defaults

WARM_UP = 10  # steps that are not counted


@dataclass
class Config:
    """Settings of the benchmark."""

    data_type: str = "gaussian"  # target
    steps: int = 100  # timed steps of each loop
    turns: int = 12  # timed turns of each loop with a critic
    output: str = "outputs/benchmarks/learning_step.csv"  # the first table as CSV
    critics_output: str = "outputs/benchmarks/critic_step.csv"  # the second


def _ours(run: Run) -> None:
    run.objective.update(run)


def _published(run: Run) -> None:
    config, optimizer = run.config, run.objective.optimizer
    z, y = run.noise(), run.points()
    training_step(run.generator, optimizer, z, y, config.beta, config.num_proximal)


def milliseconds(step: Callable[[Run], None], settings: Training, count: int) -> list[float]:
    """Times of `count` steps of a new run."""
    run, times = Run(settings), []
    for _ in tqdm(range(WARM_UP + count), desc=step.__name__.strip("_"), leave=False):
        started = time.perf_counter()
        step(run)
        times.append(1e3 * (time.perf_counter() - started))
    return times[WARM_UP:]


def minimal_wgan(run: Run) -> None:
    G, f, config = run.generator, run.objective.critic, run.config
    for _ in range(config.n_critic):
        x = G(run.noise()).detach()
        descend(run.objective.critic_optimizer, f(x).mean() - f(run.points()).mean())
        for weight in f.parameters():
            weight.data.clamp_(-config.clip, config.clip)
    descend(run.objective.optimizer, -f(G(run.noise())).mean())


def minimal_wgan_gp(run: Run) -> None:
    G, f, config = run.generator, run.objective.critic, run.config
    for _ in range(config.n_critic):
        x, y = G(run.noise()).detach(), run.points()
        u = torch.rand(len(x), 1)
        z = (u * y + (1 - u) * x).requires_grad_()
        slope = torch.autograd.grad(f(z).sum(), z, create_graph=True)[0]
        penalty = config.penalty * (slope.norm(dim=1) - 1).square().mean()
        descend(run.objective.critic_optimizer, f(x).mean() - f(y).mean() + penalty)
    descend(run.objective.optimizer, -f(G(run.noise())).mean())


def minimal_uotm(run: Run) -> None:
    T, v, config = run.generator, run.objective.critic, run.config
    y = run.points()
    x = run.noise()[:, : y.shape[1]]
    for step in range(config.n_critic + 1):
        z = torch.cat((x, run.noise()[:, y.shape[1] :]), 1).requires_grad_()
        samples = T(z)
        cost = config.tau / 2 * (x - samples).square().sum(1)
        if step == config.n_critic:
            return descend(run.objective.optimizer, (cost - v(samples)).mean())
        of_samples = v(samples)
        slope = torch.autograd.grad(of_samples.sum(), z, create_graph=True)[0][:, : y.shape[1]]
        loss = (of_samples - cost).expm1().mean() + (-v(y)).expm1().mean()
        loss = loss + config.penalty * slope.square().sum(1).mean()
        descend(run.objective.critic_optimizer, loss)


def minimal_assignment(run: Run) -> None:
    """A walk of 400 pairs, in its first update."""
    G, psi, data = run.generator, run.objective.critic, run.data
    if run.updates % TURN == 0:
        for _ in range(run.config.n_critic):
            z = torch.cat([run.noise() for _ in range(2)])
            x, price = G(z).detach(), psi(data)
            height = ((price - price.min()).detach() / 0.1).sqrt()[:, None]
            tree = cKDTree(torch.cat((data, height), 1).numpy())
            chosen = tree.query(torch.cat((x, 0 * x[:, :1]), 1).numpy(), workers=-1)[1]
            taken = torch.tensor(chosen)
            loss = price.mean() - price[taken].mean()
            descend(run.objective.critic_optimizer, loss)
        run.pairs = z, taken
    few = slice(run.updates % TURN * 64, run.updates % TURN * 64 + 64)
    z, taken = run.pairs[0][few], run.pairs[1][few]
    descend(run.objective.optimizer, (G(z) - data[taken]).square().sum(1).mean())


MINIMAL = {
    "wgan": minimal_wgan,
    "wgan-gp": minimal_wgan_gp,
    "uotm": minimal_uotm,
    "assignment-fast": minimal_assignment,
}
TURN = 7  # updates


def turn(step: Callable[[Run], None], run: Run) -> float:
    """Milliseconds of an update."""
    started = time.perf_counter()
    for _ in range(TURN):
        step(run)
        run.updates += 1
    return 1e3 * (time.perf_counter() - started) / TURN


def beside_minimal_loops(config: Config) -> list[dict]:
    rows = []
    for name, minimal in tqdm(MINIMAL.items(), desc="critics", leave=False):
        settings = Training(objective=name, data_type=config.data_type, device="cpu")
        runs = [Run(with_defaults(settings, quiet=True)) for _ in range(2)]
        for run in runs:
            run.updates = 4 * TURN  # past the first updates of wgan, which take 100 steps
        times = np.array(
            [(turn(_ours, runs[0]), turn(minimal, runs[1])) for _ in range(2 + config.turns)]
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
    settings = Training(data_type=config.data_type, device="cpu")
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
