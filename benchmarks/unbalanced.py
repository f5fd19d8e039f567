"""Does an unbalanced transport map leave outliers out, and is it a monotone map?

    python -m benchmarks.unbalanced

The toy experiments of Choi, Choi, Kang 2023, with this repository's networks; as theirs have no
BatchNorm, its statistics stay those of the first weights. Outliers: the source is N(0, 1), one
percent of the target is N(-R, 0.1^2), the rest N(1, 0.1^2). `exact` is the share of the source that
the optimal map takes to the outlier mode, the modes taken as points; with a linear conjugate (OTM)
it is one percent. Map: source 1/2 N(1, 0.5^2) + 1/2 N(-1, 0.5^2), target 2/3 N(2, 0.5^2) +
1/3 N(-1, 0.5^2); `exact` is the KL of the optimal map. What an earlier run left in the output
folder is not run again.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from scipy.optimize import minimize
from scipy.special import logsumexp, rel_entr
from scipy.stats import gaussian_kde, norm, spearmanr
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.batches import Noise
from generative.metrics import kl_divergence
from generative.objectives.uotm import CONJUGATES, Uotm
from generative.runs import written_whole
from generative.targets import Target, mixture
from learning_demo import Config as Settings
from learning_demo import Generator

SHARE = 0.01  # of the outliers
AVERAGE = 0.999  # decay, per update, of the average of weights that samples are drawn with
Z_DIM = 2  # dimensions of the noise, the first of which is the source
WINDOW = ((-4.0, 4.0),)


@dataclass
class Config:
    """Settings of the experiments."""

    distances: tuple[float, ...] = (1.0, 9.0, 12.0)  # R of the outliers
    conjugates: tuple[str, ...] = ("kl", "linear")
    seeds: int = 3
    outlier_epochs: int = 400
    map_epochs: int = 2000
    data_size: int = 4000  # points of the target, and of the map's source
    jobs: int = 1  # runs at the same time, each on one thread
    output_dir: str = "outputs/benchmarks/unbalanced"


def outlier_target(distance: float) -> Target:
    return mixture([1 - SHARE, SHARE], [[1.0], [-distance]], [0.1, 0.1], WINDOW)


MAP_SOURCE = mixture([0.5, 0.5], [[1.0], [-1.0]], [0.5, 0.5], WINDOW)
MAP_TARGET = mixture([2 / 3, 1 / 3], [[2.0], [-1.0]], [0.5, 0.5], WINDOW)


class Toy:
    """Minibatches of a fixed set of target points, and of a source."""

    shape = None  # they are no images

    def __init__(self, settings: Settings, target: Target, source: Tensor | None):
        self.settings, self.source = settings, source
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.data = target.draw(settings.data_size, self.rng)
        self.position = 0

    def noise(self) -> Tensor:
        """First the source's coordinate, fresh or from its fixed set; the rest is normal."""
        z = torch.randn(self.settings.batchsize, Z_DIM, generator=self.rng)
        if self.source is not None:
            z[:, :1] = self.source[torch.randint(len(self.source), (len(z),), generator=self.rng)]
        return z

    def points(self) -> Tensor:
        if self.position + self.settings.batchsize > len(self.data):
            self.data = self.data[torch.randperm(len(self.data), generator=self.rng)]
            self.position = 0
        self.position += self.settings.batchsize
        return self.data[self.position - self.settings.batchsize : self.position]


def trained(settings: Settings, target: Target, source: Target | None) -> Generator:
    """A map T(x, z) after `epochs` passes through the data."""
    torch.set_num_threads(1)
    fixed = None
    if source is not None:
        fixed = source.draw(settings.data_size, torch.Generator().manual_seed(settings.seed + 1))
    batches = Toy(settings, target, fixed)
    generator = Generator(Noise("gaussian", Z_DIM), settings.g_dim, 1)
    generator.initialise(batches.data, batches.rng)
    # With statistics of minibatches the potential would see a map that changes with its neighbours.
    update_bn([batches.noise() for _ in range(50)], generator)
    generator.eval()
    averaged = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE)).eval()
    objective = Uotm(settings, generator, batches)
    steps = settings.epochs * (settings.data_size // settings.batchsize)
    for step in range(steps):
        objective.set_rates(1 + (settings.lr_factor - 1) * (1 - step / steps))
        objective.update()
        averaged.update_parameters(generator)
    return averaged.module


def mapped(generator: Generator, source: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    z = torch.randn(len(source), Z_DIM, generator=rng)
    z[:, :1] = source
    with torch.no_grad():
        return generator(z)


def outlier_run(conjugate: str, distance: float, seed: int, config: Config) -> np.ndarray:
    """50,000 samples."""
    settings = Settings(
        objective="uotm", conjugate=conjugate, tau=0.1, penalty=0.01, lr=1e-4, batchsize=256,
        data_size=config.data_size, epochs=config.outlier_epochs, seed=seed,
    )  # fmt: skip
    generator = trained(settings, outlier_target(distance), None)
    source = torch.randn(50000, 1, generator=torch.Generator().manual_seed(seed + 2))
    return mapped(generator, source)[:, 0].numpy()


def in_outlier_mode(samples: np.ndarray, distance: float) -> float:
    """Share nearer to the outliers than to the others."""
    return float((samples < (1 - distance) / 2).mean())


def exact_share(distance: float, tau: float, conjugate: str) -> float:
    """Share of a standard normal that the optimal map takes to an outlier mode at -distance.

    The semi-dual problem has one potential v for each of the two modes; x goes to the mode of the
    smaller c(x, y) - v(y), so that a threshold parts the source.
    """
    if conjugate == "linear":
        return SHARE
    x = norm.ppf((np.arange(20000) + 0.5) / 20000)
    modes, shares = np.array([1.0, -distance]), np.array([1 - SHARE, SHARE])
    cost = tau / 2 * (x[:, None] - modes) ** 2

    def price(x: np.ndarray) -> np.ndarray:
        return CONJUGATES[conjugate](torch.from_numpy(x)).numpy()

    def dual(v: np.ndarray) -> float:
        least = (cost - v).min(1)
        return price(-least).mean() + shares @ price(-v)

    v = minimize(dual, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    return float(((cost - v).argmin(1) == 1).mean())


def map_run(conjugate: str, tau: float, config: Config) -> np.ndarray:
    """20,000 source points and where they go, shape (2, n). The published rate is 1e-5."""
    settings = Settings(
        objective="uotm", conjugate=conjugate, tau=tau, penalty=0.0, lr=2e-8, lr_factor=1000.0,
        critic_lr=2e-8, batchsize=256, data_size=config.data_size, epochs=config.map_epochs,
    )  # fmt: skip
    generator = trained(settings, MAP_TARGET, MAP_SOURCE)
    source = MAP_SOURCE.draw(20000, torch.Generator().manual_seed(7))
    return torch.cat((source, mapped(generator, source)), 1).T.numpy()


def exact_kl(conjugate: str, tau: float, bins: int = 300) -> float:
    """KL(T(mu) | nu) of the optimal map between the map experiment's mixtures.

    On grids, by the Sinkhorn iteration for unequal masses at the price kl (Chizat, Peyre,
    Schmitzer, Vialard 2018), its temperature falling to a thousandth of tau.
    """
    if conjugate == "linear":
        return 0.0
    x, y = np.linspace(-3, 3, bins), np.linspace(-3, 4, bins)
    mu, nu = (density / density.sum() for density in (MAP_SOURCE.density(x), MAP_TARGET.density(y)))
    cost = tau / 2 * (x[:, None] - y) ** 2
    f, g = np.zeros(bins), np.zeros(bins)
    for eps in np.geomspace(tau, tau / 1000, 12):
        for _ in range(150):
            f = -eps / (1 + eps) * logsumexp((g - cost) / eps, 1, nu)
            g = -eps / (1 + eps) * logsumexp((f[:, None] - cost) / eps, 0, mu[:, None])
    plan = np.exp((f[:, None] + g - cost) / eps) * nu  # each row over its mass of mu
    image = mu @ (plan / plan.sum(1, keepdims=True))
    return float(rel_entr(image, nu).sum())


def kept(path: Path, make: Callable[..., np.ndarray], *arguments) -> np.ndarray:
    """What make(*arguments) gives, from the file if an earlier run left it there."""
    if not path.exists():
        with written_whole(path) as temporary:
            np.save(temporary, make(*arguments))
    return np.load(path)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder = Path(config.output_dir)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    grid = [
        (c, r, s) for c in config.conjugates for r in config.distances for s in range(config.seeds)
    ]
    maps = [("kl", 0.1), ("kl", 0.02), ("linear", 0.1)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, mp_context=context) as pool:

        def start(make, epochs, cell):
            name = "_".join(map(str, (make.__name__, *cell, epochs, config.data_size)))
            return pool.submit(kept, folder / "runs" / f"{name}.npy", make, *cell, config)

        runs = {cell: start(outlier_run, config.outlier_epochs, cell) for cell in grid}
        map_runs = {cell: start(map_run, config.map_epochs, cell) for cell in maps}
        samples = {cell: run.result() for cell, run in tqdm(runs.items(), unit="run")}
        found = {cell: run.result() for cell, run in tqdm(map_runs.items(), unit="map")}
    rows, map_rows = outlier_table(config, samples), map_table(found)
    print(machine())
    for name, table in (("outliers", rows), ("map", map_rows)):
        show(table)
        write_csv(table, folder / f"{name}.csv")
    draw_outliers(config, samples, folder / "outliers.png")
    draw_maps(found, folder / "map.png")


def map_table(found: dict) -> list[dict]:
    nu = MAP_TARGET.draw(20000, torch.Generator().manual_seed(8))
    return [
        {
            "conjugate": conjugate,
            "tau": tau,
            "KL(T(mu) | nu)": kl_divergence(torch.from_numpy(images[:, None]), nu),
            "exact": exact_kl(conjugate, tau),
            "Spearman correlation": float(spearmanr(source, images).statistic),
        }
        for (conjugate, tau), (source, images) in found.items()
    ]


def outlier_table(config: Config, samples: dict) -> list[dict]:
    rows = []
    for distance in config.distances:
        for conjugate in config.conjugates:
            shares = [
                in_outlier_mode(samples[conjugate, distance, seed], distance)
                for seed in range(config.seeds)
            ]
            rows.append(
                {
                    "outliers at": -distance,
                    "conjugate": conjugate,
                    "trained, %": 100 * float(np.mean(shares)),
                    "by seed": ", ".join(f"{100 * share:.2f}" for share in shares),
                    "exact, %": 100 * exact_share(distance, 0.1, conjugate),
                }
            )
    return rows


def draw_outliers(config: Config, samples: dict, path: Path) -> None:
    """Densities of the first seed's samples, on a logarithmic scale so that one percent shows."""
    figure, panels = plt.subplots(
        1, len(config.distances), figsize=(8.3, 3), layout="constrained",
        squeeze=False, sharey=True,
    )  # fmt: skip
    colors = {"kl": plots.GENERATED, "linear": "0.35"}
    for axes, distance in zip(panels[0], config.distances):
        x = np.linspace(-distance - 1.5, 2.5, 800)
        axes.plot(x, outlier_target(distance).density(x), color=plots.TARGET, label="target")
        for conjugate in config.conjugates:
            draws = samples[conjugate, distance, 0]
            density = gaussian_kde(draws, 0.08 / max(draws.std(), 1e-9))(x)
            axes.plot(x, density, color=colors.get(conjugate), label=f"generated, {conjugate}")
        axes.set(yscale="log", ylim=(1e-5, 10), xlabel="x")
        axes.set_title(f"1 % outliers at {-distance:g}", fontsize=10)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("density")
    legend_below(figure, panels[0, 0])
    plots.save_figure(figure, path)
    print(f"Written to {path}")


def draw_maps(found: dict, path: Path) -> None:
    """Source against image, with the monotone map between the two mixtures."""
    figure, panels = plt.subplots(
        1, len(found), figsize=(8.3, 3.2), layout="constrained",
        squeeze=False, sharey=True,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(9)
    ends = [np.sort(z.draw(50000, rng)[:, 0].numpy()) for z in (MAP_SOURCE, MAP_TARGET)]
    for axes, ((conjugate, tau), (source, images)) in zip(panels[0], found.items()):
        dots = {"color": plots.GENERATED, "markersize": 2, "label": "trained map"}
        axes.plot(source[:2000], images[:2000], ".", **dots)
        axes.plot(*ends, color=plots.TARGET, linewidth=1.2, label="monotone map")
        axes.set_xlabel("source x")
        axes.set_title(f"{conjugate}, tau {tau:g}", fontsize=10)
    panels[0, 0].set_ylabel("T(x, z)")
    legend_below(figure, panels[0, 0])
    plots.save_figure(figure, path)
    print(f"Written to {path}")


def legend_below(figure: plt.Figure, axes: plt.Axes) -> None:
    """That of one panel for all of them, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    below = {"loc": "outside lower center", "ncols": len(labels), "frameon": False}
    figure.legend(handles, labels, **below, fontsize=9, markerscale=4)


if __name__ == "__main__":
    main()
