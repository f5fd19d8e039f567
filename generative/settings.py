"""A run's settings: the fields of Config and those that only its objective reads, all of them live.

`Config` of the training script is a class of values to edit. What it makes is an instance of a
subclass that has the fields of its objective: `Config(objective="wgan-gp", n_critic=3)`.
"""

import dataclasses
import difflib
import functools
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, ClassVar, dataclass_transform, get_type_hints

import numpy as np
import torch
import tyro

from generative import images, spaces
from generative.batches import LATENTS
from generative.objectives import OBJECTIVES
from generative.rules import (
    Count,
    Flag,
    Rate,
    Rule,
    Scale,
    Text,
    Weight,
    integers,
    numbers,
    one_of,
    with_rule,
)
from generative.targets import TARGETS

# What Config has. Its lines need no annotation; the comment behind a line is its help.
TYPES = {
    "data_type": one_of({**TARGETS, **dict.fromkeys(images.NAMES)}),
    "data_size": integers(2),
    "batchsize": integers(2),
    "lr": Rate,
    "epochs": Count,
    "seconds": Weight,
    "beta": Scale,
    "plot_interval": Count,
    "data_path": Text,
    "objective": Annotated[
        str,
        Rule(lambda name: name in ("auto", *OBJECTIVES), f"auto, {', '.join(OBJECTIVES)}"),
    ],
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
# How help lists them; what only an objective or images have comes in groups of their own.
GROUPS = {
    "data": ("data_type", "data_path", "data_size"),
    "training": (
        "batchsize", "epochs", "seconds", "steps_per_epoch", "lr", "lr_factor", "stratified",
        "average", "seed", "device",
    ),
    "generator": ("latent", "z_dim", "g_dim"),
    "run": ("output_dir", "plot_interval", "resume", "show", "tensorboard"),
}  # fmt: skip
# On these it depends which other fields there are.
CHOICES = ("objective", "data_type", "data_path", "space")
# What may be said anew when a run is resumed.
FREE = ("epochs", "seconds", "show", "tensorboard", "data_path", "data_dir", "download", "device")


@dataclass_transform(kw_only_default=True)
def settings(config: type) -> type:
    """Make a class of values one of settings: a dataclass whose instances know their objective.

    Making an instance raises ValueError if a line of the class or a field cannot be used.
    """

    def new(cls, **fields):
        _check_lines(cls)
        said = {name: plain(fields.get(name, getattr(cls, name, None))) for name in CHOICES}
        for name in CHOICES[:3]:
            refuse(name, said[name], TYPES[name])
        kind = cls
        if not hasattr(cls, "own"):
            space = _space(said, fields)
            kind = _kind(cls, _objective(said["objective"], space), space)
        else:
            _check_choices(cls, said)
        for name in fields:
            _known(kind, name)
        return object.__new__(kind)

    def assign(self, name, value):
        _known(type(self), name)
        said = vars(self) | {name: plain(value)}
        if name in CHOICES and said.keys() >= set(CHOICES[:3]):  # all of them are set by now
            _check_choices(type(self), said)
        if name == "objective":
            said[name] = _objective(said[name], type(self).of_space)
        object.__setattr__(self, name, said[name])

    config.__new__, config.__setattr__ = new, assign
    config.__reduce__ = lambda self: (_made, (type(self).__base__, dataclasses.asdict(self)))
    return dataclass(kw_only=True)(config)


def _made(config: type, fields: dict) -> Any:
    """Settings that were pickled or copied."""
    return config(**fields)


def _space(said: dict, fields: Iterable[str] = ()) -> str:
    """Where images are compared; "" of points. Of a file that is not here the fields tell which."""
    path = said["data_path"]
    if path:
        of_images = images.holds_images(path) or (
            not os.path.exists(path) and bool(_of_images() & set(fields) - set(TYPES))
        )
    else:
        of_images = said["data_type"] in images.NAMES
    if not of_images:
        return ""
    space = said.get("space") or spaces.NAMES[0]
    if space not in spaces.NAMES:
        raise ValueError(f"space: got {space!r}; accepts {', '.join(spaces.NAMES)}")
    return space


def _objective(name: str, space: str) -> str:
    """What "auto" stands for: IPOT for points and flow matching for images."""
    return ("ot-cfm" if space else "ipot") if name == "auto" else name


def _check_choices(kind: type, said: dict) -> None:
    """ValueError if a choice has changed what fields there are."""
    name, path = "objective", said["data_path"]
    if _objective(said[name], kind.of_space) == kind.objective:
        if path and not os.path.exists(path):
            return
        space = _space({"space": kind.of_space} | said)  # it may not be set yet
        if space == kind.of_space:
            return
        name = "space" if space and kind.of_space else "data_path" if path else "data_type"
    raise ValueError(f"{name}: got {said[name]!r}; write Config({name}={said[name]!r})")


def _of_images() -> set[str]:
    """The fields that only images have."""
    return set().union(*map(names, spaces.SETTINGS.values()))


def names(settings: Any) -> set[str]:
    """The fields of settings, or of their class."""
    return {field.name for field in dataclasses.fields(settings)}


def groups(settings: Any) -> dict[str, list[str]]:
    """The fields of settings by groups, in which help lists them."""
    listed, of_images = set().union(*GROUPS.values()), _of_images()
    rest = [name for name in vars(settings) if name not in listed]
    own = sorted((name for name in rest if name not in of_images), key="objective".__ne__)
    known = GROUPS | {"objective": own, "image": [name for name in rest if name in of_images]}
    order = ("data", "image", "objective", "training", "generator", "run")
    return {title: list(known[title]) for title in order if known[title]}


def _known(kind: type, name: str) -> None:
    """ValueError if these settings have no such field."""
    if name not in names(kind):
        raise ValueError(no_such_field(name, kind.objective, kind.of_space))


@functools.cache
def _kind(config: type, objective: str, space: str) -> type:
    """Config with the live fields of an objective, each with its default, its rule and its help."""
    own = OBJECTIVES[objective].Settings
    if space:
        theirs = OBJECTIVES[objective].SpaceSettings.get(space)
        bases = (*filter(None, (theirs,)), own, spaces.SETTINGS[space])
        own = dataclasses.make_dataclass(own.__qualname__, [], bases=bases, kw_only=True)
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
    namespace["of_space"] = space
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


def refuse(name: str, value: object, kind: Any) -> None:
    """ValueError for a value that breaks the rule."""
    rule = _rule(kind)
    if not rule.holds(value):
        raise ValueError(f"{name}: got {value!r}; accepts {rule.words}")


def no_such_field(name: str, objective: str, space: str) -> str:
    """Why an objective has no such setting there, and which ones do."""
    having = [other for other, cls in OBJECTIVES.items() if name in names(cls.Settings)]
    if having:
        return f"{name}: {objective} has no such setting; it belongs to {', '.join(having)}"
    having = [other for other, cls in spaces.SETTINGS.items() if name in names(cls)]
    if having and space:
        return f"{name}: space {space} has no such setting; it belongs to {', '.join(having)}"
    if having:
        return f"{name}: points have no such setting; it belongs to images, as of data_type digits"
    having = [
        f"{other} in space {place}"
        for other, cls in OBJECTIVES.items()
        for place, theirs in cls.SpaceSettings.items()
        if name in names(theirs)
    ]
    if having:
        return f"{name}: {objective} has no such setting here; it belongs to {', '.join(having)}"
    return f"{name}: there is no such setting{_did_you_mean(name)}"


def _did_you_mean(name: str) -> str:
    owners = [*spaces.SETTINGS.values(), *(cls.Settings for cls in OBJECTIVES.values())]
    known = {*TYPES}.union(*map(names, owners))
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def plain(value: object) -> object:
    """A setting as a file keeps it: a NumPy number as Python's, a path or a device as text."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0:
        return value.item()
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    return value
