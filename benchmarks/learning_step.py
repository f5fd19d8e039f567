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
from torch import Tensor
from tqdm import tqdm

from benchmarks.published import training_step
from benchmarks.table import machine, show, write_csv
from generative.objectives.assignment import PAIRS, WEIGHT
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
    """A walk of 400 pairs, in its first update."""
    G, psi, data = run.generator, run.objective.critic, run.data
    if run.updates % TURN == 0:
        for _ in range(run.config.n_critic):
            z = torch.cat([run.noise() for _ in range(2)])
            x, price = fake(run, z), psi(data)
            height = ((price - price.min()).detach() / WEIGHT).sqrt()[:, None]
            tree = cKDTree(torch.cat((data, height), 1).numpy())
            points = torch.cat((x, 0 * x[:, :1]), 1).numpy()
            taken = torch.tensor(tree.query(points, workers=torch.get_num_threads())[1])
            loss = price.mean() - price[taken].mean()
            descend(run.objective.critic_optimizer, loss)
        run.pairs = z, taken
    few = slice(run.updates % TURN * PAIRS, run.updates % TURN * PAIRS + PAIRS)
    z, taken = run.pairs[0][few], run.pairs[1][few]
    descend(run.objective.optimizer, (G(z) - data[taken]).square().sum(1).mean())


MINIMAL = {
    "wgan": minimal_wgan,
    "wgan-gp": minimal_wgan_gp,
    "uotm": minimal_uotm,
    "assignment-fast": minimal_assignment,
}
TURN = 7  # updates


def turn(step: Callable[[Training], None], run: Training) -> float:
    """Milliseconds of an update."""
    started = time.perf_counter()
    for _ in range(TURN):
        step(run)
        run.updates += 1
    return 1e3 * (time.perf_counter() - started) / TURN


def beside_minimal_loops(config: Config) -> list[dict]:
    rows = []
    for name, minimal in tqdm(MINIMAL.items(), desc="critics", leave=False):
        settings = config_for(name, data_type=config.data_type, device="cpu")
        runs = [Training(settings) for _ in range(2)]
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
