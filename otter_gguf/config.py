"""What is inserted, and where: the one source of every insertion field.

``otter_config.json``, the GGUF keys of a sidecar (:mod:`otter_gguf.gguf.keys`), the torch modules and the native
blocks are all made from :class:`InsertionConfig`. Symbols as in ``docs/method.md``: base width d, H query heads,
H_kv KV heads (group g = H / H_kv), head size n, inner size f, L layers, V tokens; inserted width e, KV heads k',
inner size f'.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from ._numbers import MAX_INT, shown
from .errors import ConfigError
from .heads import HeadConfig, is_size, rewards_of

__all__ = ["BaseGeometry", "HeadConfig", "InsertionConfig"]

StateSource = Literal["slice", "table"]

MAX_LAYERS = 512


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise ConfigError(f"insertion: {name} is a {type(value).__name__}, expected a {expected.__name__}")


def _refuse(where: str, problems: list[str]) -> None:
    """One ``ConfigError`` that names all problems, if there are any."""
    if problems:
        raise ConfigError(where + "; ".join(problems))


@dataclass(frozen=True)
class BaseGeometry:
    """The sizes of the base that an insertion depends on."""

    architecture: str
    """llama.cpp's name of the architecture, such as ``llama``."""
    n_layer: int
    """Layers L."""
    n_embd: int
    """Width d of the residual state."""
    n_head: int
    """Query heads H."""
    n_head_kv: int
    """KV heads H_kv."""
    head_dim: int
    """Head size n."""
    n_ff: int
    """FFN inner size f; of one expert in a mixture of experts."""
    n_vocab: int
    """Vocabulary size V."""
    n_expert: int = 0
    """Experts of each FFN; 0 = one dense FFN."""

    def __post_init__(self) -> None:
        sizes = {name: size for name, size in dataclasses.asdict(self).items() if name != "architecture"}
        problems = [
            f"{name} is {shown(size)}, expected a whole number from {int(name != 'n_expert')} to {MAX_INT}"
            for name, size in sizes.items()
            if not is_size(size, int(name != "n_expert"))
        ]
        if not problems:
            problems = self._contradictions()
        _refuse("base geometry: ", problems)

    def _contradictions(self) -> list[str]:
        problems = []
        if self.n_layer > MAX_LAYERS:
            problems.append(f"n_layer is {self.n_layer}, expected at most {MAX_LAYERS}")
        if self.n_head % self.n_head_kv != 0:
            problems.append(f"n_head {self.n_head} is not a multiple of n_head_kv {self.n_head_kv}")
        return problems

    @property
    def group(self) -> int:
        """Query heads a KV head, g."""
        return self.n_head // self.n_head_kv

    def to_dict(self) -> dict[str, Any]:
        """Every field that says something: a dense FFN has no experts to count."""
        fields = dataclasses.asdict(self)
        return fields if self.n_expert else {name: value for name, value in fields.items() if name != "n_expert"}


@dataclass(frozen=True)
class InsertionConfig:
    """The inserted part of a model: sizes per layer and sub-layer, the source of h'_0, the heads."""

    base: BaseGeometry
    """Sizes of the base it belongs to."""
    width: int
    """Inserted residual channels e; 0 = nothing inserted (the paper's Task-Head-Only baseline)."""
    n_head_kv: tuple[int, ...]
    """Inserted KV heads k' of each layer; 0 = no insertion in that attention."""
    n_ff: tuple[int, ...]
    """Inserted FFN inner size f' of each layer; 0 = no insertion in that FFN."""
    heads: tuple[HeadConfig, ...] = (HeadConfig(),)
    """At least one head, unique names."""
    state_source: StateSource = "slice"
    """h'_0: a slice of e channels of the state that enters layer 0, or a trained table [V, e]."""
    state_offset: int = 0
    """First channel of the slice, and of what `copy` initialisation copies."""

    def __post_init__(self) -> None:
        _check_type("base", self.base, BaseGeometry)
        object.__setattr__(self, "n_head_kv", tuple(self.n_head_kv))
        object.__setattr__(self, "n_ff", tuple(self.n_ff))
        object.__setattr__(self, "heads", tuple(self.heads))
        for head in self.heads:
            _check_type("a head", head, HeadConfig)
        _refuse("", self._problems())

    def _problems(self) -> list[str]:
        base = self.base
        problems = []
        for name in ("n_head_kv", "n_ff"):
            sizes = getattr(self, name)
            if len(sizes) != base.n_layer:
                problems.append(f"{name} has {len(sizes)} entries, the base has {base.n_layer} layers")
            if not all(map(is_size, sizes)):
                problems.append(f"{name} has an entry that is no whole number from 0 to {MAX_INT}")
        for name in ("width", "state_offset"):
            size = getattr(self, name)
            if not is_size(size):
                return [*problems, f"{name} is {shown(size)}, expected a whole number from 0 to {MAX_INT}"]
        if self.width == 0 and (any(self.n_head_kv) or any(self.n_ff) or self.state_source == "table"):
            problems.append("width is 0, but heads, FFN or a table are inserted")
        if self.state_source not in ("slice", "table"):
            problems.append(f"state source {shown(self.state_source)}, expected slice or table")
        if self.state_source == "slice" and self.state_offset + self.width > base.n_embd:
            problems.append(
                f"slice of {self.width} channels at {self.state_offset} does not fit the base's {base.n_embd}"
            )
        if not self.heads:
            problems.append("no head: nothing would be predicted")
        named = [head.name for head in self.heads]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            problems.append(f"several heads are named {', '.join(twice)}")
        if self.width == 0 and any(head.input != "base" for head in self.heads):
            problems.append("width is 0, so every head must read input 'base'")
        for head in self.heads:
            problems += head.of_kind.problems_beside(head, self.heads, base.n_embd)
        inserted_layers = sum(1 for k in self.n_head_kv if k)
        if base.n_layer + inserted_layers > MAX_LAYERS:
            problems.append(f"{base.n_layer} layers + {inserted_layers} inserted exceed llama.cpp's {MAX_LAYERS}")
        return problems

    @classmethod
    def uniform(
        cls,
        base: BaseGeometry,
        width: int,
        n_head_kv: int = 1,
        n_ff: int = 0,
        **kwargs: Any,
    ) -> InsertionConfig:
        """The same sizes in every layer."""
        _check_type("base", base, BaseGeometry)
        return cls(base, width, (n_head_kv,) * base.n_layer, (n_ff,) * base.n_layer, **kwargs)

    @property
    def value_heads(self) -> tuple[HeadConfig, ...]:
        """The heads whose scalars are the rewards."""
        return tuple(head for head in self.heads if head.n_rewards)

    @property
    def vocabulary_heads(self) -> tuple[HeadConfig, ...]:
        """The heads that score every possible next token."""
        return tuple(head for head in self.heads if head.of_kind.native == "vocabulary")

    @property
    def n_rewards(self) -> int:
        """Scalars a token, all value heads together."""
        return sum(head.n_rewards for head in self.heads)

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """``head.label`` for each scalar, in output order; plain ``head`` where a value head has one label."""
        return tuple(rewards_of(self.heads))

    def reward_source(self, label: str) -> tuple[HeadConfig, int]:
        """The value head and the index of its label behind an entry of ``reward_labels``; ``KeyError`` if unknown."""
        return rewards_of(self.heads)[label]

    def n_query_heads(self, layer: int) -> int:
        """Inserted query heads g*k' of a layer."""
        return self.base.group * self.n_head_kv[layer]

    def ffn_columns(self, layer: int) -> int:
        """Columns of the inserted rows of FFN down: f + f'; beside experts, with inner states of their own, f'."""
        return self.n_ff[layer] + (0 if self.base.n_expert else self.base.n_ff)

    def head_input_size(self, head: HeadConfig) -> int:
        """Columns of a head's matrix."""
        return {"inserted": self.width, "base": self.base.n_embd, "both": self.base.n_embd + self.width}[head.input]

    def head_rows(self, head: HeadConfig) -> int:
        """Rows of a head's matrix: one a label, or W and w of a vocabulary head."""
        return head.of_kind.rows(head)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for ``otter_config.json``."""
        heads = [head.to_dict() for head in self.heads]
        fields = {**dataclasses.asdict(self), "base": self.base.to_dict(), "heads": heads}
        return json.loads(json.dumps(fields))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InsertionConfig:
        """Inverse of :meth:`to_dict`; unknown or missing fields are errors."""
        try:
            fields = dict(data)
            fields["base"] = BaseGeometry(**fields["base"])
            fields["heads"] = tuple(HeadConfig.from_dict(head) for head in fields["heads"])
            return cls(**fields)
        except ConfigError:
            raise
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"insertion configuration: {error}") from None
