"""Kinds of heads, one file each; the file's name is the kind, as adapters and sidecars write it.

Files, converters, training and the native layer read the same description, so nothing here imports torch. A new kind
is a new file here that defines ``KIND`` and, where llama.cpp shall compute something new for it, a row in
``csrc/head_kinds.h`` (``docs/add-a-head.md`` is the walk-through).
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .._numbers import MAX_INT, finite, shown
from ..errors import ConfigError

HeadInput = Literal["inserted", "base", "both"]
Activation = Literal["none", "sigmoid", "tanh", "softmax"]

MAX_LABEL = 64
_HEAD_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")


def is_head_name(name: object) -> bool:
    """Whether a head may be called so: its name is part of keys and tensor names, and stands in messages."""
    return isinstance(name, str) and _HEAD_NAME.fullmatch(name) is not None


def is_size(value: object, least: int = 0) -> bool:
    """Whether llama.cpp can count with it."""
    return type(value) is int and least <= value <= MAX_INT


@dataclass(frozen=True)
class HeadConfig:
    """A head on the final normed state: ``weight @ state + bias``, and what its kind makes of that (:mod:`.value`,
    :mod:`.vocabulary`)."""

    name: str = "reward"
    """Lowercase name, at most 16 characters; part of the tensor names."""
    labels: tuple[str, ...] = ("reward",)
    """What each scalar means; of a vocabulary head: the one entry of ``reward_labels`` that it predicts."""
    input: HeadInput = "inserted"
    """The state it reads: normed h', normed h, or both ([h, h'])."""
    activation: Activation = "none"
    """Applied to the raw scalar; softmax: over the labels of a value head."""
    scale: tuple[float, ...] = ()
    """Calibration, one a label; empty = all 1."""
    shift: tuple[float, ...] = ()
    """Calibration, one a label; empty = all 0."""
    kind: str = "value"
    """What it predicts: the name of a file in :mod:`otter_gguf.heads`."""
    rank: int = 0
    """Columns r of a token table; 0 for a kind without one."""
    settings: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    """Further numbers of the kind's own by their names (:attr:`HeadKind.fields`), kept as sorted pairs."""

    def __post_init__(self) -> None:
        if not is_head_name(self.name):
            raise ConfigError(f"head name {self.name!r}: expected 1 to 16 of a-z, 0-9, _ and a letter first")
        object.__setattr__(self, "labels", tuple(self.labels))
        try:
            object.__setattr__(self, "settings", tuple(sorted(dict(self.settings).items())))
        except (TypeError, ValueError):
            raise ConfigError(
                f"head {self.name!r}: settings {shown(self.settings)}, expected numbers by name"
            ) from None
        if problems := list(self._problems()):
            raise ConfigError(f"head {self.name!r}: " + "; ".join(problems))
        for field, default in (("scale", 1.0), ("shift", 0.0)):
            what, expected = f"head {self.name!r}: {field}", f"{len(self.labels)} finite numbers"
            values = tuple(finite(x, what, expected) for x in getattr(self, field)) or (default,) * len(self.labels)
            if len(values) != len(self.labels):
                raise ConfigError(f"{what} has {len(values)} entries, expected {expected}")
            object.__setattr__(self, field, values)

    def _problems(self) -> Iterator[str]:
        if self.kind not in kinds():
            yield f"kind {shown(self.kind)}, expected {' or '.join(kinds())}"
            return
        if not self.labels or len(set(self.labels)) != len(self.labels):
            yield "labels must be unique and at least one"
        longest = self.of_kind.max_label
        if not all(
            isinstance(label, str) and label.isprintable() and 0 < len(label) <= longest for label in self.labels
        ):
            yield f"labels must be printable, of 1 to {longest} characters"
        if self.input not in get_args(HeadInput):
            yield f"input {shown(self.input)}, expected inserted, base or both"
        if self.activation not in get_args(Activation):
            yield f"activation {shown(self.activation)}, expected none, sigmoid, tanh or softmax"
        if self.activation == "softmax" and self.n_rewards < 2:
            yield "softmax needs a value head with at least 2 labels"
        yield from list(self._field_problems()) or self.of_kind.problems(self)

    def _field_problems(self) -> Iterator[str]:
        """What is wrong with the numbers of the kind's own."""
        fields, settings = self.of_kind.fields, dict(self.settings)
        for field in fields:
            value = self.rank if field.name == "rank" else settings.pop(field.name, None)
            if not is_size(value, field.least):
                yield f"{field.name} is {shown(value)}, expected at least {field.least} for a {self.kind} head"
        if all(field.name != "rank" for field in fields) and (type(self.rank) is not int or self.rank != 0):
            yield f"rank is {shown(self.rank)}, expected 0 for a {self.kind} head"
        if settings:
            yield f"settings {', '.join(map(shown, settings))}: a {self.kind} head has none of that name"

    @property
    def of_kind(self) -> HeadKind:
        """What all heads of its kind have in common."""
        return find(self.kind)

    @property
    def n_rewards(self) -> int:
        """Rewards that it gives for a token."""
        return len(self.labels) if self.of_kind.gives_rewards else 0

    def setting(self, name: str) -> int:
        """One of :attr:`settings`."""
        return dict(self.settings)[name]

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, the kind's own beside the rest."""
        fields = {name: getattr(self, name) for name in self._common_fields()}
        return {**fields, **dict(self.settings)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadConfig:
        """Inverse of :meth:`to_dict`; a field that the kind does not have is an error."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"HeadConfig from {shown(data)}, expected its fields by name")
        common = cls._common_fields()
        fields = {name: value for name, value in data.items() if name in common}
        return cls(**fields, settings={name: value for name, value in data.items() if name not in common})

    @classmethod
    def _common_fields(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.name != "settings"]


def rewards_of(heads: Iterable[HeadConfig]) -> dict[str, tuple[HeadConfig, int]]:
    """Each reward of these heads, in output order, by its name ``head.label`` (plain ``head`` where a head has one
    label): its head, and the index of the label in it."""
    return {
        head.name if head.n_rewards == 1 else f"{head.name}.{head.labels[index]}": (head, index)
        for head in heads
        for index in range(head.n_rewards)
    }


@dataclass(frozen=True)
class Field:
    """A whole number that heads of a kind have besides what all have; a ``u32`` in files."""

    name: str
    """``rank``, or its name in :attr:`HeadConfig.settings`; in files it stands beside the other fields of the head."""
    doc: str
    """What it says, for ``docs/format.md``."""
    least: int = 1
    """Its smallest value."""


class HeadKind:
    """What heads of one kind have in common. The defaults are those of a head without anything of its own."""

    summary: str = ""
    """What ``otter-gguf info`` says of such a head first, with its fields in braces."""
    native: str
    """The row of ``csrc/head_kinds.h`` that says how the native layer computes it."""
    module: str
    """The torch module that trains it, a :class:`otter_gguf.training.modules.Head`, as ``package.module:Class``."""
    gives_rewards: bool = False
    """Whether its labels are rewards of the prefix, which ``InsertionConfig.reward_labels`` lists."""
    fields: tuple[Field, ...] = ()
    """Its numbers, in file order."""
    max_label: int = MAX_LABEL
    """Characters of a label."""

    def rows(self, head: HeadConfig) -> int:
        """Rows of the matrix and entries of the bias that read the state."""
        return len(head.labels)

    def tables(self, head: HeadConfig, n_vocab: int) -> dict[str, tuple[int, int]]:
        """Matrices that it has besides: name and (rows, columns). They may be quantized.

        ``table`` is ``cls.table.{name}.otter.weight`` in a GGUF and ``heads.{name}.table.otter.weight`` in an adapter.
        """
        return {}

    def problems(self, head: HeadConfig) -> Iterator[str]:
        """What is wrong with a head by itself; its fields are checked already."""
        return iter(())

    def problems_beside(self, head: HeadConfig, heads: Sequence[HeadConfig], n_embd: int) -> Iterator[str]:
        """What is wrong with a head among all heads of an insertion, in a base of width ``n_embd``."""
        return iter(())


def kinds() -> tuple[str, ...]:
    """Every kind that has a file here."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(kind: str) -> HeadKind:
    """The description of a kind that has a file here."""
    found: HeadKind = importlib.import_module(f"{__name__}.{kind}").KIND
    return found
