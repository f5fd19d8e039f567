"""A run's settings: the fields of Config and those that only its objective reads, all of them live.

`Config` of the training script is a class of values to edit. What it makes is an instance of a
subclass that has the fields of its objective: `Config(objective="wgan-gp", n_critic=3)`.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import json
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, dataclass_transform, get_type_hints

import numpy as np
import torch
import tyro

from generative import images
from generative.batches import LATENTS
from generative.objectives import OBJECTIVES
from generative.rules import (
    Count,
    Flag,
    Rate,
    Rule,
    Scale,
    Text,
    integers,
    numbers,
    one_of,
    with_rule,
)
from generative.runs import device_name, summary_writer
from generative.targets import TARGETS, Target, from_settings

# What Config has. Its lines need no annotation; the comment behind a line is its help.
TYPES = {
    "data_type": one_of({**TARGETS, **dict.fromkeys(images.NAMES)}),
    "data_size": integers(2),
    "batchsize": integers(2),
    "lr": Rate,
    "epochs": Count,
    "beta": Scale,
    "plot_interval": Count,
    "data_path": Text,
    "objective": one_of(OBJECTIVES),
    "steps_per_epoch": Count,
    "lr_factor": Scale,
    "stratified": Flag,
    "average": numbers(0, 1, with_low=True),
    "latent": one_of(LATENTS),
    "z_dim": integers(0),
    "g_dim": integers(2),
    "seed": integers(0),
    "device": Text,
    "output_dir": Text,
    "resume": Text,
    "show": Flag,
    "tensorboard": Flag,
}
# On these it depends which other fields there are.
CHOICES = ("objective", "data_type", "data_path")
# What may be said anew when a run is resumed.
FREE = ("epochs", "show", "tensorboard", "data_path", "data_dir", "download", "device")


@dataclass_transform(kw_only_default=True)
def settings(config: type) -> type:
    """Make a class of values one of settings: a dataclass whose instances know their objective.

    Making an instance raises ValueError if a line of the class or a field cannot be used.
    """

    def new(cls, **fields):
        _check_lines(cls)
        said = {name: plain(fields.get(name, getattr(cls, name))) for name in CHOICES}
        for name, value in said.items():
            _refuse(name, value, TYPES[name])
        kind = cls
        if not hasattr(cls, "own"):
            kind = _kind(cls, said["objective"], _of_images(said, fields))
        else:
            _check_choices(cls, said)
        for name in fields:
            _known(kind, name)
        return object.__new__(kind)

    def assign(self, name, value):
        _known(type(self), name)
        said = vars(self) | {name: plain(value)}
        if name in CHOICES and said.keys() >= set(CHOICES):  # all of them are set by now
            _check_choices(type(self), said)
        object.__setattr__(self, name, plain(value))

    config.__new__, config.__setattr__ = new, assign
    config.__reduce__ = lambda self: (_made, (type(self).__base__, dataclasses.asdict(self)))
    return dataclass(kw_only=True)(config)


def _made(config: type, fields: dict) -> Any:
    """Settings that were pickled or copied."""
    return config(**fields)


def _of_images(said: dict, fields: Iterable[str] = ()) -> bool:
    """Whether the data are images; of a file that is not here, whether the other fields say so."""
    path = said["data_path"]
    if not path:
        return said["data_type"] in images.NAMES
    return images.holds_images(path) or (
        not os.path.exists(path) and bool(_names(images.Settings) & set(fields) - set(TYPES))
    )


def _check_choices(kind: type, said: dict) -> None:
    """ValueError if a choice has changed what fields there are."""
    name = "objective"
    if said[name] == kind.objective:
        path = said["data_path"]
        if (path and not os.path.exists(path)) or _of_images(said) == kind.images:
            return
        name = "data_path" if path else "data_type"
    raise ValueError(f"{name}: got {said[name]!r}; write Config({name}={said[name]!r})")


def _names(settings: Any) -> set[str]:
    """The fields of settings, or of their class."""
    return {field.name for field in dataclasses.fields(settings)}


def _known(kind: type, name: str) -> None:
    """ValueError if these settings have no such field."""
    if name not in _names(kind):
        raise ValueError(no_such_field(name, kind.objective))


@functools.cache
def _kind(config: type, objective: str, of_images: bool) -> type:
    """Config with the live fields of an objective, each with its default, its rule and its help."""
    own = OBJECTIVES[objective].Settings
    if of_images:
        theirs = OBJECTIVES[objective].ImageSettings
        bases = (theirs if issubclass(theirs, own) else own, images.Settings)
        own = dataclasses.make_dataclass(own.__qualname__, [], bases=bases)
    hints = get_type_hints(own, include_extras=True)
    comments = _comments(config) | _comments(own)
    defaults = {field.name: field.default for field in dataclasses.fields(own)}
    lines = {name: getattr(own, name) for cls in own.__mro__[:-1] for name in vars(cls)}
    for name, value in lines.items():
        if name[0] != "_" and name not in hints:
            raise ValueError(
                f"{own.__qualname__}: write `{name}: {type(value).__name__} = {value!r}`"
            )
    fields = []
    for name in [*TYPES, *(name for name in hints if name not in TYPES)]:
        if name not in hints and name in _of_some_objectives():
            fields.append((name, ClassVar[Any], None))  # a field no longer
            continue
        kind, default = TYPES.get(name), defaults.get(name, MISSING)
        if kind is None or hasattr(hints.get(name), "__metadata__"):
            kind = with_rule(hints[name])
        if default is MISSING:
            default = objective if name == "objective" else getattr(config, name)
        kind = Annotated[kind, tyro.conf.arg(help=comments.get(name))]
        fields.append((name, kind, default))
    namespace = {"__doc__": config.__doc__, "__module__": config.__module__, "own": own}
    namespace["images"] = of_images
    return dataclasses.make_dataclass(
        config.__name__, fields, bases=(config,), namespace=namespace, kw_only=True
    )


def _of_some_objectives() -> set[str]:
    """Fields of Config that only some objectives read: these list them without a default."""
    return {
        field.name
        for objective in OBJECTIVES.values()
        for field in dataclasses.fields(objective.Settings)
        if field.default is MISSING
    }


def _comments(settings: type) -> dict[str, str]:
    """The comments behind the lines of a class and of those that it extends.

    A comment may go on in lines of its own.
    """
    found = {}
    for cls in reversed(settings.__mro__[:-1]):
        try:
            source = inspect.getsource(cls)
        except (OSError, TypeError):  # written where no file is
            continue
        for name, comment in re.findall(r"^ +(\w+)\b[^#\n]* # (.+(?:\n +# .+)*)$", source, re.M):
            found[name] = re.sub(r"\n +# ", " ", comment)
    return found


def _check_lines(config: type) -> None:
    """Refuse lines of Config that are missing, renamed or of a wrong type."""
    if hasattr(config, "own"):  # it was made of lines that have been checked
        return
    lines = {
        name
        for cls in config.__mro__[:-1]
        for name in {**vars(cls), **inspect.get_annotations(cls)}
        if name[0] != "_"
    }
    for name in sorted(lines - set(TYPES)):
        raise ValueError(f"Config has a line for {name}, which is no setting{_did_you_mean(name)}")
    for name, kind in TYPES.items():
        type_, rule = kind.__origin__.__name__, _rule(kind)
        if not hasattr(config, name):
            raise ValueError(
                f"Config has no {name}; write a line `{name}: {type_} = ` with {rule.words}"
            )
        value = plain(getattr(config, name))
        if not rule.holds(value):
            raise ValueError(
                f"{name}: got {value!r}; accepts {rule.words}; write `{name}: {type_} = "
                + ("` with one of these" if (fit := _fitting(value, kind)) is None else f"{fit}`")
            )


def _fitting(value: object, kind: Any) -> int | float | None:
    """The number that was meant, as by '10' or 10.0 for an integer; None if there is none."""
    if kind.__origin__ not in (int, float) or isinstance(value, bool):
        return None
    try:
        number = kind.__origin__(value)
        same = number == float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if same and _rule(kind).holds(number) else None


def _rule(kind: Any) -> Rule:
    return next(rule for rule in kind.__metadata__ if isinstance(rule, Rule))


def _refuse(name: str, value: object, kind: Any) -> None:
    """ValueError for a value that breaks the rule."""
    rule = _rule(kind)
    if not rule.holds(value):
        raise ValueError(f"{name}: got {value!r}; accepts {rule.words}")


def no_such_field(name: str, objective: str) -> str:
    """Why an objective has no such setting, and which ones do."""
    having = [other for other, cls in OBJECTIVES.items() if name in _names(cls.Settings)]
    if having:
        return f"{name}: {objective} has no such setting; it belongs to {', '.join(having)}"
    if name in _names(images.Settings):
        return f"{name}: points have no such setting; it belongs to images, as of data_type digits"
    return f"{name}: there is no such setting{_did_you_mean(name)}"


def _did_you_mean(name: str) -> str:
    owners = [images.Settings, *(cls.Settings for cls in OBJECTIVES.values())]
    known = {*TYPES}.union(*map(_names, owners))
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def plain(value: object) -> object:
    """A setting as a file keeps it: a NumPy number as Python's, a path or a device as text."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0:
        return value.item()
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    return value


# ------------------------------------------------------------------ from elsewhere


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
        type(default), description=description, default=default, return_unknown_args=True
    )
    for word in unknown:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if word.startswith("--"):
            raise ValueError(no_such_field(name.removeprefix("no_"), default.objective))
        raise ValueError(f"{word!r} on the command line belongs to no setting")
    if said.resume:
        refuse_changes(found, default)
    return found


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


# ------------------------------------------------------------------ checks


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
    if not config.resume:
        return config, check(config)
    saved = saved_config(type(config).__base__, config.resume)
    if type(saved) is type(config):  # what is as in Config is as in the run
        said = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != field.default
        }
        config = dataclasses.replace(saved, **{"show": config.show, **said})
    refuse_changes(config, saved)
    target = check(config)
    if config.epochs < saved.epochs:
        raise ValueError(
            f"epochs: got {config.epochs}; a resumed run accepts {saved.epochs} or more"
        )
    return config, target


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
        _refuse(field.name, getattr(config, field.name), field.type)
    device_name(config.device)
    if config.tensorboard:
        summary_writer()
    target = from_settings(config)
    OBJECTIVES[config.objective].check(config, target)
    return target


def data_name(config: Any) -> str:
    """What a run is called: its target, or the user's file by up to 60 characters of text."""
    name = Path(config.data_path).stem if config.data_path else config.data_type
    if name == "folder":
        name = Path(config.data_dir).absolute().name
    return name.encode(errors="replace").decode()[:60]


def own_defaults(config: Any) -> str:
    """In words, the objective's defaults that a run uses in place of those of Config."""
    base, live = type(config).__base__, _names(config)
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


def check_checkpoint(state: dict, config: Any, target: Target, device: torch.device) -> None:
    """Refuse a checkpoint of another kind of device, of other data or of other settings.

    Raises
    ------
    ValueError
        With the setting that differs.
    KeyError
        If it is of another version.
    """
    if state["device"] != device.type:
        raise ValueError(
            f"device: got {device.type}, but the run was trained on {state['device']}, whose "
            f"random numbers differ; its generator.pt gives samples on any device"
        )
    if state["data"] != target.digest:
        raise ValueError(
            f"data_path: {config.data_path} is not what the run was trained on; it has changed "
            f"since"
        )
    for name, value in kept_settings(config).items():
        if state["settings"].get(name, value) != value:
            raise ValueError(
                f"{name}: config.json has {value!r}, but the run was trained with "
                f"{state['settings'][name]!r}"
            )
