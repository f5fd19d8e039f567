"""Which values a setting accepts: types for the fields of settings.

A field `epochs: Count = 1000` is an integer, for `tyro` as for a reader, and carries its rule.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any


@dataclass(frozen=True)
class Rule:
    """What a setting accepts: whether a value `holds`, and the same in words."""

    holds: Callable[[Any], bool]
    words: str


def integers(low: int) -> Any:
    """Integers from `low` up that torch can hold as a size or a seed."""

    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= value < 2**62

    return Annotated[int, Rule(holds, f"integers from {low} up, below 2^62")]


def integers_among(values: Container[int], words: str) -> Any:
    """Integers among these values, which are said in words."""

    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and value in values

    return Annotated[int, Rule(holds, words)]


def numbers(low: float, high: float, with_low: bool = False) -> Any:
    """Numbers above `low`, or from it on, and below `high`."""

    def holds(value: Any) -> bool:
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and (low < value or (with_low and value == low)) and value < high

    return Annotated[
        float, Rule(holds, f"numbers {'from' if with_low else 'above'} {low:g}, below {high:g}")
    ]


def one_of(names: Iterable[str]) -> Any:
    """One of these names, which may be the keys of a table that grows."""
    return Annotated[
        str, Rule(lambda value: isinstance(value, str) and value in names, ", ".join(names))
    ]


Text = Annotated[str, Rule(lambda value: isinstance(value, str), "text")]
Flag = Annotated[bool, Rule(lambda value: isinstance(value, bool), "True or False")]
Count = integers(1)
Rate = numbers(0, 1e6)  # a learning rate
Weight = numbers(0, 1e6, with_low=True)  # of a penalty
Scale = numbers(1e-9, 1e9)  # a step, a temperature, a weight of a cost


def with_rule(kind: Any) -> Any:
    """A field's type with the rule that it carries or, for a plain type, that of its values."""
    if hasattr(kind, "__metadata__"):
        return kind
    return {int: integers(-(2**62)), float: numbers(-1e300, 1e300), bool: Flag, str: Text}[kind]
