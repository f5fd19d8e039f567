"""How much do samples shrink? Plain Sinkhorn pays for its entropy with variance, IPOT does not.

    python -m benchmarks.shrinkage

The experiment of Xie et al. 2019, section 6.3.2, on a standard normal, whose answer is known: the
plain entropic cost is smallest for a Gaussian of variance s^2 - reg / 2. Both reg and beta, IPOT's
proximal step, are in units of squared distance.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from torch import Tensor
from tqdm import tqdm

import ipot
from benchmarks.table import machine, show, write_csv
from exactot.costs import squared_distances
from generative import plots
from generative.objectives.ipot import Ipot
from generative.process import unaffected
from generative.run_settings import settled
from learning_demo import Config as Settings
from learning_demo import Training


@dataclass
class Config:
    """Settings of the experiment."""

    steps: int = 2000  # updates of the generator in each run
    regs: tuple[float, ...] = (0.01, 0.1, 1.0)  # of plain Sinkhorn, in units of squared distance
    betas: tuple[float, ...] = (0.01, 0.1, 1.0)  # of IPOT
    iterations: int = 100  # for each plan
    lr: float = 2e-3  # at first; it falls to a thousandth, so that each run has settled
    output_dir: str = "outputs/benchmarks/shrinkage"


class UnscaledIpot(Ipot):
    """IPOT whose beta is not in units of the largest cost."""

    def solve(self, x: Tensor, y: Tensor) -> ipot.Transport:
        cost = squared_distances(x, y)
        return ipot.solve(
            cost, beta=self.config.beta, max_iter=self.config.num_proximal, growing=False
        )


@unaffected
def standard_deviation(config: Config, **changes) -> float:
    """Of 50,000 samples over that of the data."""
    settings = Settings(
        device="cpu",
        epochs=config.steps,
        lr=config.lr / 1000,
        lr_factor=1000.0,
        num_proximal=config.iterations,
        updates_per_plan=1,
        huber=1e3,
        **changes,
    )
    run = Training(*settled(settings))
    if settings.objective == "ipot":
        run.objective = UnscaledIpot(settings, run.generator, run.batches)
    while run.epoch < settings.epochs:
        run.run_epoch()
        run.logged.clear()
    x = run.sampler().sample(50000, seed=3, stratified=True)
    return float(x.std() / run.batches.data.std())


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    runs = [{"objective": "sinkhorn", "debiased": False, "reg": reg} for reg in config.regs] + [
        {"objective": "ipot", "beta": beta} for beta in config.betas
    ]
    rows = []
    for run in tqdm(runs, unit="run"):
        plain = run["objective"] == "sinkhorn"
        rows.append(
            {
                "objective": "plain sinkhorn" if plain else "ipot",
                "reg or beta": run["reg"] if plain else run["beta"],
                "sd / target's": standard_deviation(config, **run),
                "predicted": predicted(run["reg"]) if plain else 1.0,
            }
        )
    print(machine())
    show(rows)
    write_csv(rows, Path(config.output_dir) / "shrinkage.csv")
    draw(rows, Path(config.output_dir) / "shrinkage.png")


def predicted(reg: np.ndarray | float) -> np.ndarray | float:
    """Standard deviation of the minimiser for a standard normal; 0 from reg = 2 on."""
    return np.maximum(1 - np.asarray(reg) / 2, 0) ** 0.5


def draw(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=plots.SIZE, layout="constrained")
    places = [row["reg or beta"] for row in rows]
    reg = np.geomspace(min(places) / 2, max(places) * 1.9, 300)
    axes.plot(reg, predicted(reg), color=plots.TARGET, label="plain Sinkhorn, predicted")
    axes.axhline(1, color=plots.GENERATED, linestyle=":", label="the target's")
    styles = {"plain sinkhorn": (plots.TARGET, "s"), "ipot": (plots.GENERATED, "o")}
    for name, (color, marker) in styles.items():
        points = [(r["reg or beta"], r["sd / target's"]) for r in rows if r["objective"] == name]
        axes.plot(*np.array(points).T, marker, color=color, markersize=8, label=f"{name}, trained")
    axes.set(
        xscale="log", ylim=(0, 1.15), xlabel="reg of Sinkhorn, beta of IPOT (squared distance)"
    )
    axes.set_ylabel("generated / target standard deviation")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plots.save_figure(figure, path)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
