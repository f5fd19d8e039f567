"""A run's settings, in words and numbers that can be used: what they default to, and their checks.

`config` is the training script's Config.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from generative.noise import LATENTS
from generative.objectives import OBJECTIVES
from generative.objectives.uotm import CONJUGATES
from generative.targets import TARGETS, Target, from_file

# What Config ships with where objectives have defaults of their own: these apply to fields that are
# still so. What you edit there, or say on the command line, stays as you want it.
SHIPPED = {
    "data_size": 50000,
    "batchsize": 512,
    "lr": 1e-4,
    "steps_per_epoch": 2,
    "num_proximal": 32,
    "latent": "uniform",
    "n_critic": 5,
    "critic_lr": 0.0,
    "penalty": 0.1,
}


def plain(value: object) -> object:
    """A setting as a file keeps it: a NumPy number as Python's, a path or a device as text."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0:
        return value.item()
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    return value


def device_name(name: str) -> str:
    """The device of that name, "auto" being a GPU if there is one; ValueError if it is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.Generator(name).device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device: got {name!r}; accepts auto, cpu or a GPU present here") from None
    return name


def with_own_defaults(config):
    """These settings, with the objective's own defaults (mostly its authors') where fields are as
    they ship.

    Raises
    ------
    ValueError
        If there is no such objective.
    """
    if config.objective not in list(OBJECTIVES):
        raise ValueError(f"objective: got {config.objective!r}; accepts {', '.join(OBJECTIVES)}")
    kind = type(config)
    own = {
        name: value
        for name, value in OBJECTIVES[config.objective].defaults.items()
        if getattr(config, name) == getattr(kind, name)
        and getattr(kind, name) == SHIPPED.get(name, getattr(kind, name))
    }
    return dataclasses.replace(config, **own)


def tell_own_defaults(config) -> None:
    """Print the objective's own defaults that a run uses."""
    own = [
        f"{name} {value}"
        for name, value in OBJECTIVES[config.objective].defaults.items()
        if getattr(config, name) == value != getattr(type(config), name)
    ]
    if own:
        print(f"{config.objective} takes {', '.join(own)} unless you say otherwise")


def open_target(config) -> Target:
    """The target of that name, or the user's data."""
    if config.data_path:
        return from_file(config.data_path, config.seed)
    return TARGETS[config.data_type]


def data_name(config) -> str:
    """What a run is called: its target, or the user's file by up to 60 characters of text."""
    name = Path(config.data_path).stem if config.data_path else config.data_type
    return name.encode(errors="replace").decode()[:60]


def check(config) -> Target:
    """Refuse settings that cannot work, in one line that names the field; give the target.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    for field in dataclasses.fields(config):
        value, kinds = getattr(config, field.name), {str: "text", bool: "true or false"}
        for kind, accepted in kinds.items():
            if isinstance(field.default, kind) and not isinstance(value, kind):
                raise ValueError(f"{field.name}: got {value!r}; accepts {accepted}")
    names = {
        "data_type": TARGETS,
        "objective": OBJECTIVES,
        "latent": LATENTS,
        "conjugate": CONJUGATES,
    }
    for name, known in names.items():
        value = getattr(config, name)
        if value not in known:
            raise ValueError(f"{name}: got {value!r}; accepts {', '.join(known)}")
    least = {
        "data_size": 2,
        "batchsize": 2,
        "epochs": 1,
        "plot_interval": 1,
        "steps_per_epoch": 1,
        "num_proximal": 1,
        "updates_per_plan": 1,
        "target_batchsize": 0,
        "n_critic": 1,
        "c_dim": 1,
        "latent_centres": 1,
        "z_dim": 1,
        "x_dim": 0,
        "g_dim": 2,
        "seed": 0,
    }
    for name, low in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**62:
            raise ValueError(f"{name}: got {value!r}; accepts integers from {low} up, below 2^62")
    small, wide = (0, 1e6), (1e-9, 1e9)
    ranges = {"lr": small, "beta": wide, "reg": wide, "clip": small, "tau": wide}
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or not low < value < high:
            raise ValueError(f"{name}: got {value!r}; accepts numbers from {low:g} to {high:g}")
    from_zero = {"average": 1, "critic_lr": 1e6, "penalty": 1e6, "latent_sigma": 1e6}
    for name, high in from_zero.items():
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or not 0 <= value < high:
            raise ValueError(f"{name}: got {value!r}; accepts numbers from 0 to below {high:g}")
    if config.target_batchsize and OBJECTIVES[config.objective].one_size:
        raise ValueError(
            f"target_batchsize: got {config.target_batchsize}; {config.objective} accepts 0"
        )
    target = open_target(config)
    if config.x_dim not in (0, target.dim):
        raise ValueError(f"x_dim: got {config.x_dim}; {data_name(config)} accepts {target.dim}")
    device_name(config.device)
    return target
