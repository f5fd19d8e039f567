"""Train a generator by minimising the Wasserstein distance that IPOT computes; no discriminator.

    python learning_demo.py
    python learning_demo.py --data-type mixture --seed 1
    python learning_demo.py --objective wgan-gp --data-type mixture
    python learning_demo.py --data-path points.npy
    python learning_demo.py --resume outputs/mixture

Edit `Config` below or override its fields on the command line (`--help` lists them). In each step
the generator turns noise into points x, IPOT finds the cheapest plan P that moves them onto a
minibatch y of the target, and the generator follows the plan. Other objectives are there to
compare; each is a short file in generative/objectives. Started by torchrun it trains in several
processes (generative/ranks.py).
"""

import dataclasses
import os
import shlex
import sys
import threading
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from generative import plots, ranks
from generative.batches import Batches, Noise, noise_of, stream
from generative.display import Display, due_after, due_between, has_window
from generative.features import Autoencoder, learnt_autoencoder
from generative.generators import Decoded, ImageGenerator, Sampler
from generative.image_yardstick import ImageYardstick, new_eye
from generative.metrics import Yardstick, mode_shares
from generative.networks import linear, mirror, moving
from generative.objectives import OBJECTIVES
from generative.process import unaffected
from generative.run_settings import (
    check_checkpoint,
    data_name,
    from_command_line,
    kept_settings,
    own_defaults,
    saved_config,
    settled,
)
from generative.runs import (
    claimed,
    ctrl_c_asks,
    device_name,
    last_checkpoint,
    load_checkpoint,
    new_run_folder,
    save_checkpoint,
    write_csv,
    write_json,
)
from generative.settings import settings
from generative.targets import Target

STATISTICS = 20000  # noise that a sampler is calibrated with
SHOWN = 20000  # samples in a figure
PARTS = "generator", "averaged", "objective", "batches"  # of a training, which a checkpoint keeps
VALUES = "epoch", "steps", "spent", "seconds", "history", "frames", "logged"  # the same


@settings
class Config:
    """What a run does. Edit a line, say it on the command line, or Config(epochs=10) in Python.

    An objective adds settings of its own and may have its own defaults of these, in its file in
    generative/objectives: `--objective wgan --help` shows them.
    """

    data_type: str = "gaussian"  # target: uniform, gaussian, mixture, outlier; on the plane
    # ring, grid, moons, swiss-roll, checkerboard; images: digits, mnist, fashion-mnist,
    # cifar10, folder
    data_size: int = 50000  # samples in the data set
    batchsize: int = 512  # samples in a minibatch
    lr: float = 1e-4  # learning rate at the end of the run
    epochs: int = 1000  # training rounds
    seconds: float = 0.0  # train for this time instead; measuring comes on top; 0: for `epochs`
    beta: float = 0.05  # IPOT's proximal step, in units of the minibatch's largest cost
    plot_interval: int = 200  # rounds between figures, which are also checkpoints

    data_path: str = ""  # your own data instead: a .npy file of points (n, d) or of images
    objective: str = "auto"  # what to minimise: ipot, ipot-exact, sinkhorn, wgan, wgan-gp,
    # assignment, assignment-fast, uotm, ot-cfm; auto is ipot for points and ot-cfm for images
    steps_per_epoch: int = 1  # minibatches in a round
    lr_factor: float = 200.0  # learning rates start at this multiple and fall to lr; 1: constant
    stratified: bool = True  # spread a minibatch's noise and data evenly
    average: float = 0.95  # decay per round of the weights' average that samples are drawn with
    latent: str = "uniform"  # noise: uniform in [-1, 1], or gaussian
    z_dim: int = 0  # dimensions of the noise; 0: those of a sample, but at least 2
    g_dim: int = 128  # width of the generator's first hidden layer; the second has half
    seed: int = 0  # one seed for data, weights and noise
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, cuda:1, ...
    output_dir: str = "outputs"  # each run makes a folder of its own in here
    resume: str = ""  # folder of a run to go on with; its own settings apply; epochs may grow
    show: bool = True  # show the fit while it trains, in a window or a notebook
    tensorboard: bool = False  # write scalars and the fit for TensorBoard too


class Generator(Sampler):
    """Three linear layers with BatchNorm and LeakyReLU between them.

    Weights come from :meth:`initialise` or a file.
    """

    def __init__(self, noise: Noise, g_dim: int, x_dim: int):
        super().__init__(noise, x_dim)
        self.layers = nn.Sequential(
            linear(noise.dim, g_dim),
            nn.BatchNorm1d(g_dim, dtype=torch.float32),
            nn.LeakyReLU(0.2),
            linear(g_dim, g_dim // 2),
            nn.BatchNorm1d(g_dim // 2, dtype=torch.float32),
            nn.LeakyReLU(0.2),
            linear(g_dim // 2, x_dim),
        )

    def initialise_weights(self, rng: torch.Generator) -> None:
        """Xavier normal weights in mirrored pairs, which make the first map linear.

        Neurons come in pairs of opposite sign ("looks linear", Balduzzi et al. 2017). A random map
        folds the noise, and training does not unfold it. BatchNorm's offsets spread the neurons'
        kinks over the noise.
        """
        first, norm, _, second, other_norm, _, last = self.layers
        for layer in (first, second, last):
            nn.init.xavier_normal_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)
        for layer in (norm, other_norm):
            nn.init.uniform_(layer.bias, -(3**0.5), 3**0.5, generator=rng)
        outputs = (first.weight, norm.bias, second.weight, other_norm.bias)
        for weights in (*outputs, second.weight.T, last.weight.T):
            mirror(weights)

    def standard(self, z: Tensor) -> Tensor:
        return self.layers(z)


def new_generator(config: Config, x_dim: int, shape: tuple[int, ...] | None) -> Sampler:
    """The network that the objective trains, for data (n, x_dim), which are images if they have a
    shape (c, h, w); its weights are not set.
    """
    noise = noise_of(config, config.z_dim or max(2, x_dim))
    own = OBJECTIVES[config.objective].make_generator(config, noise, x_dim)
    if shape and not own:
        return ImageGenerator(noise, config.g_dim, shape, config.attention)
    return own or Generator(noise, config.g_dim, x_dim)


@unaffected
def load_generator(folder: str | Path, device: str = "auto") -> Sampler:
    """The generator of a finished run; its samples are float64, in the units of the run's data.

    The data are not needed.

    Raises
    ------
    ValueError
        If there is no finished run in the folder, or no such device.
    """
    device = torch.device(device_name(device))
    weights = load_checkpoint(Path(folder) / "generator.pt", device)
    config, shape = saved_config(Config, folder), None
    if "shape" in weights:
        shape = tuple(weights["shape"].tolist())
    if config.of_space == "latent":
        autoencoder = Autoencoder(shape, config.latent_dim)
        generator = Decoded(new_generator(config, config.latent_dim, None), autoencoder)
    else:
        generator = new_generator(config, len(weights["mean"]), shape)
    generator.load_state_dict(weights, assign=True)
    return generator.eval()


class Training:
    """All state of a run: what a checkpoint holds and an update changes.

    Data and samples are in the target's standard units, distances in the history in the data's.
    In the space "latent" the objective and its generator see an autoencoder's latents of the data.
    """

    def __init__(self, config: Config, target: Target, saved: dict | None = None):
        """`saved` is a checkpoint, of which networks that learn before the run are taken."""
        learnt = saved or {}
        self.config, self.target = config, target
        self.device = torch.device(device_name(config.device))
        rng = self.new_rng(0)
        self.data = data = target.draw(config.data_size, rng)
        self.spent = 0.0  # seconds of training
        self.autoencoder, shape = None, target.shape
        if config.of_space == "latent":
            started = time.perf_counter()
            self.autoencoder = learnt_autoencoder(
                config, data, shape, self.new_rng(7), learnt.get("autoencoder")
            )
            self.spent, shape = ranks.agreed(time.perf_counter() - started), None
            data = self.autoencoder.encode(data)
        self.generator = new_generator(config, data.shape[1], shape).to(self.device)
        self.generator.initialise(data, rng)
        self.averaged = AveragedModel(self.generator, multi_avg_fn=moving(config.average))
        ranks.normalised_by_all(self.generator)
        noise = self.generator.noise
        self.batches = Batches(noise, data, config.batchsize, config.stratified, rng, shape)
        self.objective = OBJECTIVES[config.objective](config, self.generator, self.batches)
        self.eye = self.yardstick = None
        if ranks.rank() == 0:  # which alone measures
            if target.images:
                self.eye = new_eye(target.images, self.new_rng(4), learnt.get("eye"))
            self.yardstick = self.new_yardstick(2, full=False)
        self.limit = 1e9 * max(1.0, float(data.var(0).sum()))  # of a figure to log
        self.shown = plots.SIDE**2 if target.images else SHOWN // self.generator.thrift
        self.epoch = self.steps = 0
        self.seconds = 0.0
        self.logged: list[dict[str, Tensor]] = []  # since the last row of the history
        self.history: list[dict] = []
        self.frames: list[Tensor] = []  # what a figure shows, one for each row of the history

    def new_rng(self, number: int) -> torch.Generator:
        """Random numbers by the run's seed: 0 for training, others for what it must not see."""
        return stream(self.config.seed, number, self.device)

    def new_yardstick(self, number: int, full: bool) -> Yardstick | ImageYardstick:
        """What measures the generator, with random numbers of its own."""
        rng = self.new_rng(number)
        if self.eye:
            inception = self.config.inception
            return ImageYardstick(self.target, self.data, self.eye, rng, full, inception)
        return Yardstick(self.target, self.data, rng, full, self.generator.thrift)

    @property
    def done(self) -> float:
        """The part of the training that it has behind it."""
        seconds = self.config.seconds
        return min(1.0, self.spent / seconds if seconds else self.epoch / self.config.epochs)

    def run_epoch(self) -> None:
        """`steps_per_epoch` minibatches, at rates that fall linearly from epoch to epoch."""
        started, left = time.perf_counter(), 1 - self.done
        self.epoch += 1
        self.objective.set_rates(1 + (self.config.lr_factor - 1) * left)
        for _ in range(self.config.steps_per_epoch):
            self.logged.append(self.objective.update())
            self.steps += 1
            if self.config.seconds and self.elapsed(started) >= self.config.seconds:
                break
        self.averaged.update_parameters(self.generator)
        self.spent = self.elapsed(started)

    def due(self, before: float) -> str:
        """What is due after an epoch, before which this part of the training was done: "figure", or
        another true word for a row of the history alone."""
        if self.config.seconds:
            return due_between(before, self.done)
        return due_after(self.epoch, self.done == 1, self.config.plot_interval)

    def elapsed(self, started: float) -> float:
        """Seconds of training, with those since `started`; the first rank's, where they matter."""
        if self.config.seconds and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = self.spent + time.perf_counter() - started
        return ranks.agreed(spent) if self.config.seconds else spent

    def sampler(self) -> Sampler:
        """The generator to draw from: averaged weights, and calibrated for them."""
        count = STATISTICS // self.generator.thrift
        self.averaged.module.calibrate(self.generator.noise(count, self.new_rng(1), True))
        generator = self.averaged.module.eval()
        return Decoded(generator, self.autoencoder) if self.autoencoder else generator

    def evaluate(self) -> None:
        """Add a row to the history and a frame to the animation; the first rank alone measures."""
        names = list(self.logged[0] if self.logged else ())
        logged = [torch.stack([step[name] for step in self.logged]).mean() for name in names]
        ranks.averaged_(logged)
        means = dict(zip(names, map(float, logged)))
        self.logged.clear()
        for name, mean in means.items():
            if not abs(mean) < self.limit:
                raise ValueError(f"{name} went to {mean:.3g}")
        if ranks.rank():
            return
        sample = partial(self.sampler().sample, seed=self.config.seed)
        x = sample(self.shown)
        if not bool(x.isfinite().all()):
            raise ValueError("samples are no longer finite")
        self.history.append({"epoch": self.epoch, **means, **self.yardstick.measure(sample)})
        self.frames.append(torch.from_numpy(plots.frame(x.cpu().numpy(), self.target)))

    def title(self, row: dict) -> str:
        """The title of the figure for a row of the history."""
        verdict = plots.verdict(row | self.yardstick.reference, self.target)
        return f"{data_name(self.config)}, epoch {row['epoch']}: {verdict}"

    def metrics(self) -> dict:
        """How far the generator is from the target, beside what it could reach at best."""
        yardstick = self.new_yardstick(3, full=True)
        sample = partial(self.sampler().sample, seed=self.config.seed)
        found = yardstick.measure(sample) | yardstick.reference
        if self.eye:
            found["features"] = self.eye.words
        if self.target.centres is not None:
            found |= mode_shares(sample(SHOWN), self.target)
        return found | {"steps": self.steps}

    def weights(self) -> dict[str, Tensor]:
        """The sampler's, on the CPU; their mean and standard deviation are in the data's units."""
        weights = {name: weight.cpu() for name, weight in self.sampler().state_dict().items()}
        mean = torch.from_numpy(self.target.in_data_units(weights["mean"].numpy()))
        return weights | {"mean": mean, "std": self.target.scale * weights["std"].double()}

    def is_finite(self) -> bool:
        """Whether it has not diverged since it was last evaluated."""
        return all(bool(weight.isfinite().all()) for weight in self.generator.parameters())

    def state(self) -> dict:
        parts = {name: getattr(self, name) for name in (*PARTS, "autoencoder", "eye")}
        return {
            "device": self.device.type,
            "data": self.target.digest,
            "settings": kept_settings(self.config),
            **{name: part and part.state_dict() for name, part in parts.items()},
            **{name: getattr(self, name) for name in VALUES},
        }

    def restore(self, state: dict) -> None:
        """Go back to a checkpoint, which fits the settings (`check_checkpoint`).

        Raises
        ------
        ValueError
            If it was made by another version.
        """
        try:
            for name in PARTS:
                getattr(self, name).load_state_dict(state[name])
            for name in VALUES:
                setattr(self, name, state[name])
            self.frames = [frame.cpu() for frame in self.frames]
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"the checkpoint does not fit the run's settings: {reason}") from None


@unaffected
def train(config: Config) -> dict:
    """Run or resume a training; write everything to the run's folder and return the metrics.

    Raises
    ------
    ValueError
        If a setting or the data cannot be used, before anything is written; if the folder is in
        use or cannot be written to; or if the training breaks down. The last checkpoint stays.
    KeyboardInterrupt
        After Ctrl-C and the end of the epoch, with the command that resumes the run; a second
        Ctrl-C does not wait for the end.
    """
    started = time.perf_counter()
    with ranks.joined(device_name(config.device).startswith("cuda")):
        config, target = settled(config)
        if config.batchsize % ranks.count():
            several = f"a multiple of the {ranks.count()} processes"
            raise ValueError(f"batchsize: got {config.batchsize}; accepts {several}")
        if ranks.count() > 1 and torch.device(device_name(config.device)).index is not None:
            raise ValueError(
                f"device: got {config.device}; several processes accept auto, cuda, cpu"
            )
        return _train(config, target, started) if ranks.rank() == 0 else _help(config, target)


def _train(config: Config, target: Target, started: float) -> dict:
    """The training of the first rank, which alone writes, prints and draws."""
    folder = ranks.restarted_folder(config.output_dir) or config.resume
    folder = Path(folder or new_run_folder(config.output_dir, data_name(config)))
    with claimed(folder):
        saved = last_checkpoint(folder, torch.device(device_name(config.device)))
        if saved is None:
            print(f"Writing to {folder}{own_defaults(config)}")
        else:
            check_checkpoint(saved, config, target)
        ranks.agreed(saved)
        run = Training(config, target, saved)
        if saved is not None:
            run.restore(saved)
            print(f"Resuming {folder} after epoch {run.epoch}")
        write_json(folder / "config.json", dataclasses.asdict(config))
        ranks.remember_folder(folder)
        try:
            with ctrl_c_asks() as stop:
                return ranks.agreed(_fit(run, folder, started - run.seconds, stop))
        except KeyboardInterrupt:
            words = sys.executable, os.path.abspath(__file__), "--resume", os.path.abspath(folder)
            raise KeyboardInterrupt(shlex.join(words)) from None


def _help(config: Config, target: Target) -> dict:
    """The training of another rank: its rows of each minibatch, and nothing else."""
    saved = ranks.agreed(None)
    run = Training(config, target, saved)
    if saved is not None:
        run.restore(saved)
    with ctrl_c_asks() as stop:
        while run.done < 1:
            before = run.done
            run.run_epoch()
            if run.due(before):
                run.evaluate()
            if ranks.any_of(stop.is_set()):
                ranks.agreed(None)  # the first rank has saved
                if run.done < 1:
                    raise KeyboardInterrupt
    return ranks.agreed(None)


def _fit(run: Training, folder: Path, started: float, stop: threading.Event) -> dict:
    """Train to the last epoch, with figures and checkpoints on the way."""
    config = run.config
    events = folder / "tensorboard" if config.tensorboard else None
    with Display(run.target, config, run.epoch, run.spent, events) as display:

        def show(with_figure: bool) -> None:
            row = run.history[-1]
            display.look(run.frames[-1], run.title(row), row)
            if with_figure:
                plots.save_figure(display.fit.figure, folder / f"fit_{run.epoch:05d}.png")

        if not run.history:
            run.evaluate()
            show(with_figure=True)
        while run.done < 1:
            try:
                before = run.done
                run.run_epoch()
                if due := run.due(before):
                    run.evaluate()
            except ValueError as error:  # also the solver's: samples that are no longer finite
                raise ValueError(
                    f"training broke down in epoch {run.epoch} ({error}); try "
                    f"{run.objective.advice}. The last checkpoint, if any, stays in {folder}"
                ) from None
            if due:
                show(with_figure=due == "figure")
            display.advance(run.epoch, run.spent)
            stopped = ranks.any_of(stop.is_set())
            if due == "figure" or (stopped and run.is_finite()):
                run.seconds = time.perf_counter() - started
                save_checkpoint(folder / "checkpoint.pt", run.state())
            if stopped:
                ranks.agreed(None)
                if run.done < 1:
                    raise KeyboardInterrupt
        return _finish(run, folder, started, display)


def _finish(run: Training, folder: Path, started: float, display: Display) -> dict:
    """The final figures, tables and weights."""
    config, target = run.config, run.target
    metrics = run.metrics()
    write_csv(folder / "history.csv", run.history)
    save_checkpoint(folder / "generator.pt", run.weights())

    name, verdict = data_name(config), plots.verdict(metrics, target)
    sampler = run.sampler()
    x = sampler.sample(run.shown, config.seed)
    display.fit.show(plots.frame(x.cpu().numpy(), target), f"{name}: {verdict}")
    display.refresh()
    plots.save_figure(display.fit.figure, folder / "final.png")
    for figure, drawn in plots.last_figures(run, sampler).items():
        plots.save_figure(drawn, folder / f"{figure}.png")
    titles, epochs = zip(*((run.title(row), row["epoch"]) for row in run.history))
    plots.save_animation(run.frames, titles, epochs, target, folder / "fit.gif")
    metrics["seconds"] = round(time.perf_counter() - started, 2)
    write_json(folder / "metrics.json", metrics)
    display.progress.close()
    print(f"{folder}: {verdict}, in {metrics['seconds']:.0f} s; see {folder / 'final.png'}")
    return metrics


def main() -> None:
    if hasattr(sys.stdout, "reconfigure"):  # a folder's name may have letters that it lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        title, commands, _ = __doc__.split("\n\n", 2)
        config = from_command_line(Config, description=f"{title}\n\n{commands}")
        train(config)
    except ValueError as error:
        if not ranks.is_first():
            # The first rank says the same, and ends this one, unless this one alone has the error.
            time.sleep(2)
        sys.exit(f"learning_demo.py: {error}")
    except KeyboardInterrupt as stop:
        words = f"\nStopped. To go on: {stop}" if stop.args else "\nStopped."
        sys.exit(words if ranks.is_first() else 1)
    except ranks.Lost as error:
        sys.exit(f"learning_demo.py: {error}")
    if config.show and ranks.is_first() and has_window():
        plt.show()


if __name__ == "__main__":
    main()
