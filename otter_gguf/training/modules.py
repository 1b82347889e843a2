"""The widened modules: each holds a module of the base and the inserted tensors beside it.

The base's own forward code carries the state [h, h'] through them, because it only adds, normalises and applies
element-wise functions. What the base computes is computed by the base's own module on the base's own slice, without
gradient: h never depends on h', so nothing can flow back through it, and its logits stay bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import BaseGeometry, HeadConfig
from .parts import base_part, factor, inserted_part, join

BASE_INFIX = ".base."
"""In the names of a widened module's own tensors: its child ``base``. Without an insertion a "." stands there."""


def parameter_dtype(base: torch.dtype) -> torch.dtype:
    """Inserted tensors are trained in F32 beside a half-precision base, and never in less than the base's type."""
    return torch.promote_types(base, torch.float32) if base.is_floating_point else torch.float32


def cut_out_of_rows(x: Tensor, row_size: int, first: int = 0) -> Tensor:
    """A copy of x (..., n) as channels ``first`` to ``first + n`` of rows that are ``row_size`` long.

    That is how a slice of a fused map's output stands in memory, and kernels may round by strides and addresses.
    """
    cut = x.new_empty((*x.shape[:-1], row_size))[..., first : first + x.shape[-1]]
    return cut.copy_(x)


class Inserted(nn.Module):
    """The inserted tensors of one module; a child named ``otter``, which gives their names the infix."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape[0], device=device, dtype=dtype)) if bias else None


def inserted_product(weight: Tensor, h: Tensor, inserted: Tensor, bias: Tensor | None = None) -> Tensor:
    """Inserted rows (rows, d + e) times [h, h'], and their bias: (..., rows)."""
    # Two products instead of one: no gradient is computed for the base's columns.
    over_base, over_inserted = weight.to(h.dtype).tensor_split([h.shape[-1]], dim=1)  # (rows, d), (rows, e)
    bias = bias.to(h.dtype) if bias is not None else None
    return functional.linear(h, over_base) + functional.linear(inserted, over_inserted, bias)


class Widened(nn.Module):
    """A module of the base that reads the first ``base_columns`` channels of its input."""

    enabled: bool
    """False: the module is the base's and nothing else."""

    def __init__(self, base: nn.Module, base_columns: int = 0) -> None:
        super().__init__()
        self.base = base
        self.base_columns = base_columns
        self.enabled = True

    def run_base(self, x: Tensor) -> Tensor:
        """The base's module on its slice (..., base_columns), contiguous so that it takes the very same kernel."""
        with torch.no_grad():
            return cast(Tensor, self.base(base_part(x, self.base_columns)))

    def insert(self, shape: tuple[int, ...], bias: bool = False) -> None:
        """Add inserted tensors (zeros) beside the base's weight."""
        weight = cast(Tensor, self.base.weight)
        self.otter = Inserted(shape, weight.device, parameter_dtype(weight.dtype), bias)


class Narrow(Widened):
    """Reads h alone: the output head, and the norm of a sub-layer with nothing inserted."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> the base's output for (..., d)."""
        return self.run_base(x)


class Padded(Widened):
    """Output map, or norm behind it, of a sub-layer with nothing inserted: adds zero to h'.

    ``base_columns`` is 0 where no channels are read, but ids (learned positions).
    """

    def __init__(self, base: nn.Module, width: int, base_columns: int) -> None:
        super().__init__(base, base_columns)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(..., inner or d + e), or ids (...) -> (..., d + e)."""
        with torch.no_grad():
            y = self.run_base(x) if self.base_columns else cast(Tensor, self.base(x))
        return functional.pad(y, (0, self.width)) if self.enabled else y


class WidenedLinear(Widened):
    """[[W, 0], [inserted rows]]: the base's rows read the base's columns, inserted rows read all."""

    def __init__(self, base: nn.Module, rows: int, base_columns: int, columns: int, bias: bool = False) -> None:
        super().__init__(base, base_columns)
        self.insert((rows, columns), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., base rows + inserted rows)."""
        h = base_part(x, self.base_columns)
        y = self.run_base(h)
        if not self.enabled:
            return y
        inserted = inserted_part(x, self.base_columns)
        return self.join(y, inserted_product(self.otter.weight, h, inserted, self.otter.bias))

    def join(self, y: Tensor, inserted: Tensor) -> Tensor:
        """The base's outputs and the inserted ones."""
        return join(y, inserted)


class FusedLinear(WidenedLinear):
    """Several maps that read the same input as one matrix, such as queries, keys and values.

    The inserted tensor stacks its rows in the same order. The output is cut by the base's own code, so that each part's
    inserted channels stand behind the base's of that part.
    """

    def __init__(
        self, base: nn.Module, rows: int, base_columns: int, columns: int, parts: tuple[tuple[int, int], ...]
    ) -> None:
        super().__init__(base, rows, base_columns, columns)
        self.sizes = [list(sizes) for sizes in zip(*parts, strict=True)]

    def join(self, y: Tensor, inserted: Tensor) -> Tensor:
        """[base's, inserted] of the first part, then of the next."""
        base, added = (x.split(sizes, dim=-1) for x, sizes in zip((y, inserted.to(y.dtype)), self.sizes, strict=True))
        return torch.cat([piece for pair in zip(base, added, strict=True) for piece in pair], dim=-1)


class WidenedRMSNorm(Widened):
    """Partial norm: w * [h, h'] / rms(h). The paper's one-line change.

    ``base_offset`` is what the base adds to its weights before it multiplies; to inserted weights nothing is added.
    """

    def __init__(
        self, base: nn.Module, width: int, base_columns: int, epsilon: float, base_offset: float = 0.0
    ) -> None:
        super().__init__(base, base_columns)
        self.epsilon = epsilon
        self.base_offset = base_offset
        self.insert((width,))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> (..., d + e)."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        dtype = parameter_dtype(x.dtype)
        h = x.detach()[..., : self.base_columns].to(dtype)  # (..., d)
        scale = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.epsilon)  # (..., 1)
        return join(y, self.otter.weight * (inserted_part(x, self.base_columns).to(dtype) * scale))


class WidenedLayerNorm(Widened):
    """Partial norm of a LayerNorm: w * ([h, h'] - mean(h)) / std(h) + b."""

    def __init__(self, base: nn.Module, width: int, base_columns: int, epsilon: float) -> None:
        super().__init__(base, base_columns)
        self.epsilon = epsilon
        self.insert((width,), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> (..., d + e)."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        dtype = parameter_dtype(x.dtype)
        h = x.detach()[..., : self.base_columns].to(dtype)  # (..., d)
        variance, mean = torch.var_mean(h, dim=-1, correction=0, keepdim=True)  # (..., 1) each
        normed = (inserted_part(x, self.base_columns).to(dtype) - mean) * torch.rsqrt(variance + self.epsilon)
        return join(y, self.otter.weight * normed + cast(Tensor, self.otter.bias))


class WidenedHeadNorm(Widened):
    """The base's norm of queries or keys, each head by itself: the inserted heads stand behind the base's.

    ``base_columns`` is how many heads the base has. No inserted tensor: the weights are one head's, the same for all.
    """

    def __init__(self, base: nn.Module, base_columns: int, heads_dim: int) -> None:
        super().__init__(base, base_columns)
        self.heads_dim = heads_dim

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) with the heads along ``heads_dim`` -> the same shape."""
        h, inserted = x.tensor_split([self.base_columns], dim=self.heads_dim)  # the base's heads, the inserted
        with torch.no_grad():
            y = cast(Tensor, self.base(h.detach().contiguous()))
        if not self.enabled:
            return y
        return torch.cat([y, self.base(inserted.contiguous())], dim=self.heads_dim)


class WidenedActivation(Widened):
    """An element-wise function on both parts: in one call, vectorised code would treat the base's ends differently.

    ``row_size``: of the base's fused map whose output it reads, if that is fused.
    """

    def __init__(self, base: nn.Module, base_columns: int, row_size: int = 0) -> None:
        super().__init__(base, base_columns)
        self.row_size = row_size

    def run_base(self, x: Tensor) -> Tensor:
        """The base's function of the base's part, which stands in memory as in the base."""
        if not self.row_size:
            return super().run_base(x)
        with torch.no_grad():
            cut = cut_out_of_rows(x[..., : self.base_columns], self.row_size) if self.enabled else x
            return cast(Tensor, self.base(cut))

    def forward(self, x: Tensor) -> Tensor:
        """(..., f + f') -> (..., f + f')."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        return factor(join(y, cast(Tensor, self.base(inserted_part(x, self.base_columns)))))


class Beside(nn.Module):
    """An inserted map for which the base has no single one."""

    def __init__(self, rows: int, columns: int, like: Tensor) -> None:
        super().__init__()
        self.otter = Inserted((rows, columns), like.device, parameter_dtype(like.dtype))


class WidenedExperts(Widened):
    """A mixture of experts and beside it the inserted FFN, which every token uses whatever experts it is sent to.

    The inserted maps read [h, h'] and the inserted inner channels alone: which channels the base's inner state has
    depends on the experts.
    """

    gate_proj: Beside
    up_proj: Beside
    down_proj: Beside

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> (..., d + e)."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        h, inserted = base_part(x, self.base_columns), inserted_part(x, self.base_columns)
        gate, up = (inserted_product(part.otter.weight, h, inserted) for part in (self.gate_proj, self.up_proj))
        activation = self.base.get_submodule("experts.act_fn")
        return join(y, functional.linear(activation(gate) * up, self.down_proj.otter.weight.to(x.dtype)))

    def first_expert(self) -> tuple[Tensor, Tensor]:
        """The weights of expert 0: gate above up (2f, d), and down (d, f)."""
        experts = self.base.get_submodule("experts")
        return experts.get_parameter("gate_up_proj")[0], experts.get_parameter("down_proj")[0]


class SlicedEmbedding(Widened):
    """h'_0 is a slice of the state that enters layer 0; no inserted tensor."""

    def __init__(self, base: nn.Module, channels: tuple[int, ...]) -> None:
        super().__init__(base)
        self.channels = slice(channels[0], channels[-1] + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) -> (..., d + e)."""
        with torch.no_grad():
            h = cast(Tensor, self.base(tokens))
            return torch.cat([h, h[..., self.channels]], dim=-1) if self.enabled else h


class TableEmbedding(Widened):
    """h'_0 is a row of a trained table (V, e)."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__(base)
        self.insert((len(cast(Tensor, base.weight)), width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) -> (..., d + e)."""
        with torch.no_grad():
            h = cast(Tensor, self.base(tokens))
        if not self.enabled:
            return h
        return torch.cat([h, functional.embedding(tokens, self.otter.weight).to(h.dtype)], dim=-1)


class Table(nn.Module):
    """A matrix that a head has beside the one that reads the state."""

    def __init__(self, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.otter = Inserted(shape, device, dtype)


class Head(nn.Module):
    """A matrix over the final normed state, and the calibration of what is made of its output."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: HeadConfig, base: BaseGeometry, columns: int, like: Tensor) -> None:
        super().__init__()
        self.config = config
        self.base_columns = base.n_embd
        dtype = parameter_dtype(like.dtype)
        self.otter = Inserted((config.of_kind.rows(config), columns), like.device, dtype, bias=True)
        for table, shape in config.of_kind.tables(config, base.n_vocab).items():
            self.add_module(table, Table(shape, like.device, dtype))
        # Calibration stands in the configuration, so it is no part of the saved tensors.
        self.register_buffer("scale", torch.tensor(config.scale, device=like.device, dtype=dtype), persistent=False)
        self.register_buffer("shift", torch.tensor(config.shift, device=like.device, dtype=dtype), persistent=False)

    def project(self, state: Tensor) -> Tensor:
        """weight @ state + bias of the part of the final normed state (..., d + e) that the head reads: (..., rows)."""
        state = state.to(self.otter.weight.dtype)
        if self.config.input == "inserted":
            state = inserted_part(state, self.base_columns)
        elif self.config.input == "base":
            state = state[..., : self.base_columns]
        return functional.linear(state, self.otter.weight, self.otter.bias)

    def initialise(
        self, generator: torch.Generator, value_heads: Mapping[str, ValueHead], output_embedding: Callable[[], Tensor]
    ) -> None:
        """First values; the value heads have theirs already. Variance 1 / (columns + 1), so that first outputs have
        about unit variance; biases 0.

        Args:
            generator: what is drawn comes from it.
            output_embedding: gives the base's (V, d).
        """
        weight = self.otter.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * (weight.shape[1] + 1) ** -0.5)

    def follow(self, label: str, mean: float, deviation: float) -> None:
        """Follow a calibration of the reward ``label`` to (reward - mean) / deviation, if the head has its unit."""

    def calibrated(self, raw: Tensor) -> Tensor:
        """scale * activation(raw) + shift; softmax runs over the last dimension, the labels."""
        if self.config.activation == "sigmoid":
            raw = torch.sigmoid(raw)
        elif self.config.activation == "tanh":
            raw = torch.tanh(raw)
        elif self.config.activation == "softmax":
            raw = torch.softmax(raw, dim=-1)
        return raw * self.scale + self.shift


class ValueHead(Head):
    """Scalars for the prefix that ends with a token: scale * activation(W @ state + b) + shift, one a label."""

    def raw(self, state: Tensor) -> Tensor:
        """Final normed state (..., d + e) -> scalars before activation and calibration (..., labels)."""
        return self.project(state)

    def forward(self, state: Tensor) -> Tensor:
        """Final normed state (..., d + e) -> rewards (..., labels)."""
        return self.calibrated(self.raw(state))
