"""Where a run's settings come from, and whether they can work."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
import tyro

from generative.images import NAMES
from generative.inception import check_inception
from generative.objectives import OBJECTIVES
from generative.objectives.plan import FollowPlan
from generative.runs import device_name, summary_writer
from generative.settings import CHOICES, FREE, TYPES, groups, names, no_such_field, refuse
from generative.targets import Target, from_settings

FEWEST_IMAGES = 10  # in a training set: metrics look at five neighbours


def from_command_line(config: type, description: str) -> Any:
    """Settings by the command line; `--help` and mistakes end the program.

    The objective decides which fields there are, and a run to resume what they default to.

    Raises
    ------
    ValueError
        For a flag that is not live, or a run that cannot be resumed.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*CHOICES, "resume"):
        first.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, nargs="?")
    said, _ = first.parse_known_args()
    if said.resume:
        default = saved_config(config, said.resume)
    else:
        chosen = {name: getattr(said, name) for name in CHOICES}
        default = config(**{name: value for name, value in chosen.items() if value})
    found, unknown = tyro.cli(
        _in_groups(default), description=description, return_unknown_args=True
    )
    parts = (vars(part) for part in vars(found).values())
    found = dataclasses.replace(default, **{k: v for part in parts for k, v in part.items()})
    for word in unknown:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if word.startswith("--"):
            name = name.removeprefix("no_")
            raise ValueError(no_such_field(name, default.objective, default.of_space))
        raise ValueError(f"{word!r} on the command line belongs to no setting")
    if said.resume:
        refuse_changes(found, default)
    return found


def _in_groups(default: Any) -> Any:
    """A type with a field for each group of settings, as tyro groups its help by fields."""
    fields = {field.name: field for field in dataclasses.fields(default)}
    parts = []
    for title, held in groups(default).items():
        lines = [
            (name, fields[name].type, dataclasses.field(default=getattr(default, name)))
            for name in held
        ]
        part = dataclasses.make_dataclass(title, lines, namespace={"__doc__": ""})
        parts.append((title, part, dataclasses.field(default_factory=part)))
    return tyro.conf.OmitArgPrefixes[dataclasses.make_dataclass("Settings", parts)]


def saved_config(config: type, folder: str | Path) -> Any:
    """The settings to go on with the run in `folder`: its own; `epochs` may then be raised.

    A device that this computer lacks becomes the default one, which can draw samples.

    Raises
    ------
    ValueError
        If there is no run in the folder.
    """
    path = Path(folder) / "config.json"
    try:
        saved = config(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"resume: {folder} is not a run's folder (no config.json)") from None
    except (OSError, TypeError, ValueError) as error:  # not text, not JSON, or unknown fields
        raise ValueError(f"resume: {path} cannot be read: {error}") from None
    try:
        device_name(saved.device)
    except ValueError:
        saved.device = config.device
    return dataclasses.replace(saved, resume=str(folder), show=config.show)


def settled(config: Any) -> tuple[Any, Target]:
    """The settings that a run works with, checked, and its target.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    config = dataclasses.replace(config)  # fields may have been assigned since it was made
    if config.data_path and isinstance(config.data_path, str):
        config.data_path = os.path.abspath(config.data_path)
    foreign = getattr(config, "contaminate", "")
    if foreign not in ("", *NAMES) and os.path.exists(foreign):
        config.contaminate = os.path.abspath(foreign)
    if not config.resume:
        return _found_again(config), check(config)
    saved = saved_config(type(config).__base__, config.resume)
    if type(saved) is type(config):  # what is as in Config is as in the run
        said = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != field.default
        }
        config = dataclasses.replace(saved, **{"show": config.show, **said})
    refuse_changes(config, saved)
    target = check(_found_again(config))
    for name in ("epochs", "seconds"):
        least = getattr(saved, name)
        if getattr(config, name) < least:
            raise ValueError(
                f"{name}: got {getattr(config, name)}; a resumed run accepts {least} or more"
            )
    return config, target


def _found_again(config: Any) -> Any:
    """The settings, with the images' folder by its absolute path."""
    if config.of_space and isinstance(config.data_dir, str):
        config.data_dir = os.path.abspath(config.data_dir)
    return config


def refuse_changes(config: Any, saved: Any) -> None:
    """ValueError if settings to go on with differ from those of the run where they must not."""
    for name, kept in dataclasses.asdict(saved).items():
        given = getattr(config, name, None)
        # Data elsewhere and another device are compared with the checkpoint.
        if name not in FREE and given != kept:
            raise ValueError(
                f"{name}: got {given!r}, but the run in {saved.resume} has {kept!r}; "
                f"a resumed run keeps its settings"
            )


def check(config: Any) -> Target:
    """Refuse settings that cannot work, in one line that names the field; give the target.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    for field in dataclasses.fields(config):
        refuse(field.name, getattr(config, field.name), field.type)
    device_name(config.device)
    if config.tensorboard:
        summary_writer()
    if config.of_space and config.inception:
        check_inception()
    target = from_settings(config)
    if config.of_space == "patches":
        _check_patches(config, min(target.shape[1:]))
    if target.images and config.data_size < FEWEST_IMAGES:
        raise ValueError(
            f"data_size: got {config.data_size}; images accept {FEWEST_IMAGES} or more"
        )
    dim = config.latent_dim if config.of_space == "latent" else target.dim
    OBJECTIVES[config.objective].check(config, dim)
    return target


def _check_patches(config: Any, side: int) -> None:
    """ValueError unless the objective has plans, and patches cover images of this shorter side."""
    if not issubclass(OBJECTIVES[config.objective], FollowPlan):
        raise ValueError(
            f"space: got 'patches'; {config.objective}, which follows no plans, accepts latent, "
            f"pixels"
        )
    for name, most in (("patch_size", side), ("patch_stride", config.patch_size)):
        if (given := getattr(config, name)) > most:
            raise ValueError(f"{name}: got {given}; accepts up to {most}, so that patches fit")


def data_name(config: Any) -> str:
    """What a run is called: its target, or the user's file by up to 60 characters of text."""
    name = Path(config.data_path).stem if config.data_path else config.data_type
    if name == "folder":
        name = Path(config.data_dir).absolute().name
    return name.encode(errors="replace").decode()[:60]


def own_defaults(config: Any) -> str:
    """In words, the objective's defaults that a run uses in place of those of Config."""
    base, live = type(config).__base__, names(config)
    own = [
        f"{name} {getattr(config, name)}"
        for name in TYPES
        if name in live - {"objective"}
        and getattr(config, name) == getattr(type(config), name) != getattr(base, name)
    ]
    return f"; {config.objective} takes {', '.join(own)} unless you say otherwise" if own else ""


def kept_settings(config: Any) -> dict:
    """Those that hold from the first epoch to the last."""
    kept = dataclasses.asdict(config)
    for name in (*FREE, "resume", "output_dir"):
        kept.pop(name, None)
    return kept


def check_checkpoint(state: dict, config: Any, target: Target) -> None:
    """Refuse a checkpoint of another kind of device, of other data or of other settings.

    Raises
    ------
    ValueError
        With the setting that differs.
    """
    if not {"device", "data", "settings"} <= state.keys():
        raise ValueError("the checkpoint does not fit the run's settings: it is of another version")
    device = torch.device(device_name(config.device)).type
    if state["device"] != device:
        raise ValueError(
            f"device: got {device}, but the run was trained on {state['device']}, whose "
            f"random numbers differ; its generator.pt gives samples on any device"
        )
    if state["data"] != target.digest:
        setting = "data_path" if config.data_path or not config.of_space else "data_dir"
        raise ValueError(
            f"{setting}: {getattr(config, setting)} is not what the run was trained on; it has "
            f"changed since"
        )
    for name, value in kept_settings(config).items():
        if state["settings"].get(name, value) != value:
            raise ValueError(
                f"{name}: config.json has {value!r}, but the run was trained with "
                f"{state['settings'][name]!r}"
            )
