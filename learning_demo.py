"""Train a generator by minimising the Wasserstein distance that IPOT computes; no discriminator.

    python learning_demo.py
    python learning_demo.py --data-type mixture --seed 1
    python learning_demo.py --objective wgan-gp --data-type mixture
    python learning_demo.py --data-path points.npy
    python learning_demo.py --resume outputs/mixture

Edit `Config` below or override its fields on the command line (`--help` lists them). In each step
the generator turns noise into points x, IPOT finds the cheapest plan P that moves them onto a
minibatch y of the target, and the gradient of the transport cost trains the generator. Other
objectives are there to compare; each is a short file in generative/objectives.
"""

import csv
import dataclasses
import json
import os
import shlex
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from generative import plots
from generative.checkpoints import (
    claimed,
    ctrl_c_asks,
    load_checkpoint,
    new_run_folder,
    save_checkpoint,
    write_json,
    written_whole,
)
from generative.metrics import all_metrics, wasserstein_distances
from generative.networks import linear
from generative.noise import Noise
from generative.objectives import OBJECTIVES
from generative.process import unaffected
from generative.settings import (
    check,
    data_name,
    device_name,
    open_target,
    plain,
    tell_own_defaults,
    with_own_defaults,
)


@dataclass
class Config:
    """Settings of a run; edit them here or override them on the command line."""

    data_type: str = "gaussian"  # target: uniform, gaussian, mixture, outlier, ring, grid, ...
    data_size: int = 50000  # samples in the data set
    batchsize: int = 512  # samples in a minibatch
    lr: float = 1e-4  # Adam's learning rate
    epochs: int = 1000  # training rounds
    beta: float = 0.05  # IPOT's proximal step, in units of the minibatch's largest cost
    plot_interval: int = 200  # rounds between figures, which are also checkpoints

    data_path: str = ""  # your own data instead: a .npy file, an array of shape (n, d)
    objective: str = "ipot"  # what to minimise: ipot, ipot-exact, sinkhorn, wgan, wgan-gp, ...
    steps_per_epoch: int = 2  # minibatches in a round
    num_proximal: int = 32  # IPOT iterations for each plan
    updates_per_plan: int = 1  # updates of the generator that follow each plan
    target_batchsize: int = 0  # data in a minibatch, for a sharper fit; 0: as many as batchsize
    reg: float = 0.1  # sinkhorn's regularisation, in units of squared distance (standard units)
    debiased: bool = True  # whether sinkhorn's cost is debiased; plain, its samples shrink
    n_critic: int = 5  # steps of a critic for each of the generator; assignment: rounds
    critic_lr: float = 0.0  # a critic's learning rate; 0: lr
    clip: float = 0.01  # wgan: largest weight of the critic
    penalty: float = 0.1  # wgan-gp, uotm: weight of the penalty on the critic's slope
    conjugate: str = "kl"  # uotm: price of unequal masses: linear (OTM), kl, chi2 or softplus
    tau: float = 0.1  # uotm: weight of the transport cost
    c_dim: int = 128  # width of a critic's hidden layers
    latent: str = "uniform"  # noise: uniform in [-1, 1], gaussian, or gaussians (many narrow ones)
    latent_centres: int = 10000  # how many gaussians, their centres drawn from a standard normal
    latent_sigma: float = 0.1  # their standard deviation
    z_dim: int = 2  # dimensions of the noise
    x_dim: int = 0  # dimensions of a sample; 0: those of the target
    g_dim: int = 128  # width of the generator's first hidden layer; the second has half
    anneal: bool = False  # let learning rates fall to zero over the run, for a sharper end
    even: bool = False  # spread a minibatch's noise and data evenly: plans with less chance in them
    average: float = 0.98  # decay per round of the average of weights that samples are drawn with
    seed: int = 0  # one seed for data, weights and noise
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, cuda:1, ...
    output_dir: str = "outputs"  # each run makes a folder of its own in here
    resume: str = ""  # folder of a run to go on with; its own settings apply, but epochs may grow
    show: bool = True  # show the fit in a window while it trains, where there is a display

    def __post_init__(self):
        """Turn NumPy's numbers, paths and devices into what a file keeps."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, plain(getattr(self, field.name)))


# What may be said anew when a run is resumed.
FREE = ("epochs", "show", "data_path", "device")


class Generator(nn.Module):
    """Noise to samples: three linear layers with BatchNorm and LeakyReLU between them.

    Weights come from :meth:`initialise` or a file.

    The data's mean and standard deviation scale the output. Samples are in the units of these two:
    the target's standard units in training, the data's own, in float64, with those of generator.pt.
    """

    def __init__(self, z_dim: int, g_dim: int, x_dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            linear(z_dim, g_dim),
            nn.BatchNorm1d(g_dim, dtype=torch.float32),
            nn.LeakyReLU(0.2),
            linear(g_dim, g_dim // 2),
            nn.BatchNorm1d(g_dim // 2, dtype=torch.float32),
            nn.LeakyReLU(0.2),
            linear(g_dim // 2, x_dim),
        )
        self.register_buffer("mean", torch.zeros(x_dim, dtype=torch.float64))
        self.register_buffer("std", torch.ones(x_dim, dtype=torch.float64))

    def initialise(self, data: Tensor, rng: torch.Generator) -> None:
        """Xavier normal weights, zero biases; mean and standard deviation of data (n, x_dim)."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight, generator=rng)
                nn.init.zeros_(layer.bias)
        self.mean, self.std = data.mean(0), data.std(0)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (n, z_dim) to samples (n, x_dim)."""
        return self.mean + self.std * self.layers(z)


class Training:
    """All state of a run: what a checkpoint holds and an update changes.

    Data and samples are in the target's standard units, distances in the history in the data's.
    """

    def __init__(self, config: Config):
        self.config = config
        self.device = torch.device(device_name(config.device))
        self.target = open_target(config)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.noise = Noise(config, self.rng)
        self.data = self.target.draw(config.data_size, self.rng)
        self.generator = Generator(config.z_dim, config.g_dim, self.target.dim).to(self.device)
        self.generator.initialise(self.data, self.rng)
        self.averaged = AveragedModel(
            self.generator, multi_avg_fn=get_ema_multi_avg_fn(config.average)
        )
        if config.even:
            tree = cKDTree(self.data.cpu().numpy(), leafsize=1)
            self.order = torch.from_numpy(tree.indices.astype(np.int64)).to(self.device)
        self.limit = 1e9 * max(1.0, float(self.data.var(0).sum()))  # of a figure to log
        self.updates = 0  # calls of Objective.update
        self.position = 0  # in the data set
        self.objective = OBJECTIVES[config.objective](config, self.generator, self)
        self.epoch = 0
        self.seconds = 0.0
        self.logged: list[dict[str, Tensor]] = []  # since the last row of the history
        self.history: list[dict] = []
        self.frames: list[list] = []  # what a figure shows, one for each row of the history

    def points(self) -> Tensor:
        """The next minibatch of the data set, which is walked through again and again.

        An even one takes points at equal distances in the order of a k-d tree, so that each region
        of the data has its share.
        """
        count = self.config.target_batchsize or self.config.batchsize
        if self.config.even:
            start = torch.rand(1, generator=self.rng, device=self.device, dtype=torch.float64)
            place = (torch.arange(count, device=self.device) + start) * (len(self.data) / count)
            return self.data[self.order[place.long() % len(self.data)]]
        index = (self.position + torch.arange(count, device=self.device)) % len(self.data)
        self.position += count
        return self.data[index]

    def run_epoch(self) -> None:
        """`steps_per_epoch` minibatches."""
        if self.config.anneal:
            self.objective.set_rates(1 - self.epoch / self.config.epochs)
        for _ in range(self.config.steps_per_epoch):
            self.logged.append(self.objective.update(self))
            self.updates += 1
        self.averaged.update_parameters(self.generator)
        self.epoch += 1

    def sampler(self) -> Generator:
        """The generator to draw from: averaged weights, BatchNorm statistics recomputed for them.

        BatchNorm's own running statistics lag behind the weights and spoil the samples.
        """
        rng = torch.Generator(self.device).manual_seed(self.config.seed + 1)
        size = max(2, self.config.batchsize)
        update_bn([self.noise(size, rng) for _ in range(20)], self.averaged)
        return self.averaged.module.eval()

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The sampler's, on the CPU; their mean and standard deviation are in the data's units."""
        weights = {name: weight.cpu() for name, weight in self.sampler().state_dict().items()}
        mean = torch.from_numpy(self.target.in_data_units(weights["mean"].numpy()))
        return weights | {"mean": mean, "std": self.target.scale * weights["std"].double()}

    @torch.no_grad()
    def mapped_grid(self) -> np.ndarray:
        """Where the generator takes the lines of a square grid in two dimensions of noise."""
        reach = 1.0 if self.config.latent == "uniform" else 2.0
        t, places = np.linspace(-reach, reach, 200), np.linspace(-reach, reach, 21)
        upright = np.stack(np.meshgrid(places, t, indexing="ij"), -1).astype(np.float32)
        lines = torch.from_numpy(np.concatenate((upright, upright[..., ::-1]))).to(self.device)
        return self.sampler()(lines.flatten(0, 1)).view(lines.shape).cpu().numpy()

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """n generated samples and two sets of 50,000 target samples, none seen in training.

        The sets are smaller where the target is the user's data.
        """
        rng = torch.Generator(self.device).manual_seed(self.config.seed + seed)
        x = self.sampler()(self.noise(n, rng, independent=True))
        y, other = self.target.two_sets(50000, rng)
        return x, y, other

    def evaluate(self) -> None:
        """Add a row to the history and a frame to the animation."""
        means = {
            name: float(torch.stack([step[name] for step in self.logged]).mean())
            for name in self.logged[0]
        }
        self.logged.clear()
        for name, mean in means.items():
            if not abs(mean) < self.limit:
                raise ValueError(f"{name} went to {mean:.3g}")
        x, y, _ = self.sample(20000, seed=2)
        if not bool(x.isfinite().all()):
            raise ValueError("samples are no longer finite")
        w1, w2 = (self.target.scale * w for w in wasserstein_distances(x[: len(y)], y, points=1000))
        self.history.append({"epoch": self.epoch, **means, "w1": w1, "w2": w2})
        self.frames.append(plots.frame(x.cpu().numpy(), self.target).tolist())

    def is_finite(self) -> bool:
        """Whether it has not diverged since it was last evaluated."""
        return all(bool(weight.isfinite().all()) for weight in self.generator.parameters())

    def kept_settings(self) -> dict:
        """Those that hold from the first epoch to the last."""
        settings = dataclasses.asdict(self.config)
        for name in (*FREE, "resume", "output_dir"):
            del settings[name]
        return settings

    def state(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "averaged": self.averaged.state_dict(),
            "objective": self.objective.state_dict(),
            "updates": self.updates,
            "logged": self.logged,
            "position": self.position,
            "rng": self.rng.get_state(),
            "device": self.device.type,
            "data": self.target.digest,
            "settings": self.kept_settings(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "frames": self.frames,
        }

    def restore(self, state: dict) -> None:
        """Go back to a checkpoint.

        Raises
        ------
        ValueError
            If it was made on another kind of device, with other data or settings or by another
            version.
        """
        try:
            if state["device"] != self.device.type:
                raise ValueError(
                    f"device: got {self.device.type}, but the run was trained on "
                    f"{state['device']}, whose random numbers differ; its generator.pt gives "
                    f"samples on any device"
                )
            if state.get("data") != self.target.digest:
                raise ValueError(
                    f"data_path: {self.config.data_path} is not what the run was trained on; it "
                    f"has changed since, or the run was made by an earlier version"
                )
            for name, value in self.kept_settings().items():
                if state["settings"].get(name, value) != value:
                    raise ValueError(
                        f"{name}: config.json has {value!r}, but the run was trained with "
                        f"{state['settings'][name]!r}"
                    )
            self.generator.load_state_dict(state["generator"])
            self.averaged.load_state_dict(state["averaged"])
            self.objective.load_state_dict(state["objective"])
            self.updates, self.position = state["updates"], state["position"]
            self.rng.set_state(state["rng"].cpu())
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.history, self.frames = state["history"], state["frames"]
            self.logged = state["logged"]
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"the checkpoint does not fit the run's settings: {reason}") from None


@unaffected
@torch.no_grad()
def sample(folder: str | Path, n: int, seed: int = 0) -> Tensor:
    """n samples (n, x_dim) of a finished run, float64, in the units of its data.

    The data are not needed. Samples are on the run's device or, where there is none, on the default
    one.

    Raises
    ------
    ValueError
        If there is no finished run in the folder.
    """
    config = saved_config(folder)
    rng = torch.Generator(device_name(config.device)).manual_seed(seed)
    generator = Generator(config.z_dim, config.g_dim, config.x_dim)
    weights = load_checkpoint(Path(folder) / "generator.pt", rng.device)
    generator.load_state_dict(weights, assign=True)
    return generator.eval()(Noise(config, rng)(n, independent=True))


@unaffected
def train(config: Config, own_defaults: bool = True) -> dict:
    """Run or resume a training; write everything to the run's folder and return the metrics.

    Parameters
    ----------
    own_defaults : bool
        Whether fields of a new run that have the value they ship with take the objective's own
        default, as on the command line; False takes the settings as they are.

    Raises
    ------
    ValueError
        If a setting or the data cannot be used, before anything is written; if the folder is in
        use or cannot be written to; or if the training breaks down. The last checkpoint stays.
    KeyboardInterrupt
        After Ctrl-C and the end of the epoch, with the command that resumes the run; a second
        Ctrl-C does not wait for the end.
    """
    config = _settled(config, own_defaults)
    run = Training(config)
    folder = Path(config.resume or new_run_folder(config.output_dir, data_name(config)))
    with claimed(folder):
        if (folder / "checkpoint.pt").exists():
            run.restore(load_checkpoint(folder / "checkpoint.pt", run.device))
            print(f"Resuming {folder} after epoch {run.epoch}")
        elif (folder / "metrics.json").exists():
            raise ValueError(f"resume: the finished run in {folder} has lost its checkpoint.pt")
        else:
            tell_own_defaults(config)
            print(f"Writing to {folder}")
        write_json(folder / "config.json", dataclasses.asdict(config))
        try:
            with ctrl_c_asks() as stop:
                return _fit(run, folder, stop)
        except KeyboardInterrupt:
            words = sys.executable, os.path.abspath(__file__), "--resume", os.path.abspath(folder)
            raise KeyboardInterrupt(shlex.join(words)) from None


def _fit(run: Training, folder: Path, stop: threading.Event) -> dict:
    """Train to the last epoch, with figures and checkpoints on the way."""
    config = run.config
    live = config.show and plots.has_display()
    fit = plots.fit_plot(run.target, plots.fit_figure(live))
    if live:
        fit.figure.show()
    started = time.perf_counter() - run.seconds
    with tqdm(total=config.epochs, initial=run.epoch, unit="epoch") as progress:
        while run.epoch < config.epochs:
            epoch = run.epoch + 1
            at_figure = epoch % config.plot_interval == 0 or epoch == config.epochs
            look = at_figure or epoch % max(1, config.plot_interval // 5) == 0
            try:
                run.run_epoch()
                if look:
                    run.evaluate()
            except ValueError as error:  # also the solver's: samples that are no longer finite
                raise ValueError(
                    f"training broke down in epoch {epoch} ({error}); try {run.objective.advice}. "
                    f"The last checkpoint, if there is one, stays in {folder}"
                ) from None
            progress.update()
            if look:
                row = run.history[-1]
                progress.set_postfix(loss=f"{row['loss']:.3g}", W1=f"{row['w1']:.3g}")
                fit.show(run.frames[-1], _title(config, row))
                if live:
                    fit.refresh_window()
            if at_figure:
                plots.save_figure(fit.figure, folder / f"fit_{run.epoch:05d}.png")
            if at_figure or (stop.is_set() and run.is_finite()):
                run.seconds = time.perf_counter() - started
                save_checkpoint(folder / "checkpoint.pt", run.state())
            if stop.is_set() and run.epoch < config.epochs:
                raise KeyboardInterrupt
    metrics = _finish(run, fit, folder, started)
    if live:
        fit.refresh_window()
    return metrics


def _finish(run: Training, fit: plots.FitPlot, folder: Path, started: float) -> dict:
    """The final figures, tables and weights."""
    config = run.config
    x, y, other = run.sample(50000, seed=3)
    metrics = all_metrics(x[: len(y)], y, other, run.target)
    metrics |= {"samples": len(y), "steps": run.updates}
    w1, w1_floor = metrics["w1"], metrics["w1_floor"]
    with written_whole(folder / "history.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(run.history[0]))
        writer.writeheader()
        writer.writerows(run.history)
    save_checkpoint(folder / "generator.pt", run.weights())

    title = f"{data_name(config)}: W1 {w1:.3g}, between two target samples {w1_floor:.3g}"
    fit.show(plots.frame(x.cpu().numpy(), run.target), title)
    plots.save_figure(fit.figure, folder / "final.png")
    plots.save_figure(plots.curves(run.history, w1_floor, run.target), folder / "curves.png")
    if run.target.dim == config.z_dim == 2:
        plots.save_figure(plots.noise_map(run.mapped_grid(), run.target), folder / "map.png")
    titles = [_title(config, row) for row in run.history]
    plots.save_animation(run.frames, titles, run.target, folder / "fit.gif")
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    write_json(folder / "metrics.json", metrics)
    print(
        f"{folder}: W1 {w1:.3g} to fresh samples (two target samples: {w1_floor:.3g}) after "
        f"{metrics['steps']} steps in {metrics['seconds']:.0f} s; see {folder / 'final.png'}"
    )
    return metrics


def _title(config: Config, row: dict) -> str:
    return f"{data_name(config)}, epoch {row['epoch']}: W1 {row['w1']:.3g}"


# ------------------------------------------------------------------------------ settings


def _settled(config: Config, own_defaults: bool) -> Config:
    """The settings that a run works with, checked."""
    config = dataclasses.replace(config)  # fields may have been assigned since it was made
    if config.data_path and isinstance(config.data_path, str):
        config.data_path = os.path.abspath(config.data_path)
    if config.resume:
        return _resumed(config)
    if own_defaults:
        config = with_own_defaults(config)
    x_dim, z_dim = check(config).dim, config.z_dim
    if OBJECTIVES[config.objective].maps_source:
        z_dim = max(x_dim, z_dim)
    return dataclasses.replace(config, x_dim=x_dim, z_dim=z_dim)


def _resumed(config: Config) -> Config:
    """Settings to go on with, checked against those of the run."""
    saved = saved_config(config.resume)
    for field in dataclasses.fields(Config):
        given, kept = getattr(config, field.name), getattr(saved, field.name)
        # Data elsewhere and another device are compared with the checkpoint.
        if field.name not in FREE and given != kept:
            raise ValueError(
                f"{field.name}: got {given!r}, but the run in {config.resume} has {kept!r}; "
                f"a resumed run keeps its settings"
            )
    check(config)
    if config.epochs < saved.epochs:
        raise ValueError(
            f"epochs: got {config.epochs}; a resumed run accepts {saved.epochs} or more"
        )
    return config


def config_for(objective: str, **changes) -> Config:
    """Config with an objective's own defaults and these changes; ValueError if it is unknown."""
    return dataclasses.replace(with_own_defaults(Config(objective=objective)), **changes)


def saved_config(folder: str) -> Config:
    """The settings to go on with the run in `folder`: its own; `epochs` may then be raised.

    A device that this computer lacks becomes the default one, which can draw samples.

    Raises
    ------
    ValueError
        If there is no run in the folder.
    """
    path = Path(folder) / "config.json"
    try:
        saved = Config(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"resume: {folder} is not a run's folder (no config.json)") from None
    except (OSError, TypeError, ValueError) as error:  # not text, not JSON, or unknown fields
        raise ValueError(f"resume: {path} cannot be read: {error}") from None
    try:
        device_name(saved.device)
    except ValueError:
        saved.device = Config.device
    return dataclasses.replace(saved, resume=folder, show=Config.show)


def main() -> None:
    if hasattr(sys.stdout, "reconfigure"):  # a folder's name may have letters that it lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    config = tyro.cli(Config, description=__doc__)
    try:  # a second reading, so that what is said there goes before other defaults
        if config.resume:
            default = saved_config(config.resume)
        else:
            default = config_for(config.objective)
        train(tyro.cli(Config, description=__doc__, default=default), own_defaults=False)
    except ValueError as error:
        sys.exit(f"learning_demo.py: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"\nStopped. To go on: {stop}" if stop.args else "\nStopped.")
    if config.show and plots.has_display():
        plt.show()


if __name__ == "__main__":
    main()
