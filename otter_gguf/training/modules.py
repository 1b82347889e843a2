"""The widened modules: each holds a module of the base and the inserted tensors beside it.

The base's own forward code carries the state [h, h'] through them, because it only adds, normalises and applies
element-wise functions. What the base computes is computed by the base's own module on the base's own slice, without
gradient: h never depends on h', so nothing can flow back through it, and its logits stay bit for bit the same.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import HeadConfig


def parameter_dtype(base: torch.dtype) -> torch.dtype:
    """Inserted tensors are trained in F32 beside a half-precision base, and never in less than the base's type."""
    return torch.promote_types(base, torch.float32) if base.is_floating_point else torch.float32


class Inserted(nn.Module):
    """The inserted tensors of one module; a child named ``otter``, which gives their names the infix."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape[0], device=device, dtype=dtype)) if bias else None


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
            return cast(Tensor, self.base(x[..., : self.base_columns].contiguous()))

    def insert(self, shape: tuple[int, ...]) -> None:
        """Add inserted tensors (zeros) beside the base's weight."""
        weight = cast(Tensor, self.base.weight)
        self.otter = Inserted(shape, weight.device, parameter_dtype(weight.dtype))


class Narrow(Widened):
    """Reads h alone: the output head, and the norm of a sub-layer with nothing inserted."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> the base's output for (..., d)."""
        return self.run_base(x)


class Padded(Widened):
    """Output map of a sub-layer with nothing inserted: adds zero to h', whose residual passes through."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__(base)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(..., inner) -> (..., d + e)."""
        with torch.no_grad():
            y = cast(Tensor, self.base(x))
            return functional.pad(y, (0, self.width)) if self.enabled else y


class WidenedLinear(Widened):
    """[[W, 0], [inserted rows]]: the base's rows read the base's columns, inserted rows read all."""

    def __init__(self, base: nn.Module, rows: int, base_columns: int, columns: int) -> None:
        super().__init__(base, base_columns)
        self.insert((rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., base rows + inserted rows)."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        return torch.cat([y, functional.linear(x, self.otter.weight.to(x.dtype)).to(y.dtype)], dim=-1)


class WidenedRMSNorm(Widened):
    """Partial norm: w * [h, h'] / rms(h). The paper's one-line change."""

    def __init__(self, base: nn.Module, width: int, base_columns: int, epsilon: float) -> None:
        super().__init__(base, base_columns)
        self.epsilon = epsilon
        self.insert((width,))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d + e) -> (..., d + e)."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        h, inserted = x.to(parameter_dtype(x.dtype)).tensor_split([self.base_columns], dim=-1)
        scale = torch.rsqrt(h.detach().pow(2).mean(-1, keepdim=True) + self.epsilon)
        return torch.cat([y, (self.otter.weight * (inserted * scale)).to(y.dtype)], dim=-1)


class WidenedActivation(Widened):
    """An element-wise function on both parts: in one call, vectorised code would treat the base's ends differently."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., f + f') -> (..., f + f')."""
        y = self.run_base(x)
        if not self.enabled:
            return y
        return torch.cat([y, cast(Tensor, self.base(x[..., self.base_columns :]))], dim=-1)


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

    def __init__(self, base: nn.Embedding, width: int) -> None:
        super().__init__(base)
        self.insert((base.num_embeddings, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) -> (..., d + e)."""
        with torch.no_grad():
            h = cast(Tensor, self.base(tokens))
        if not self.enabled:
            return h
        return torch.cat([h, functional.embedding(tokens, self.otter.weight).to(h.dtype)], dim=-1)


class ValueHead(nn.Module):
    """Scalars for the prefix that ends with a token: scale * activation(W @ state + b) + shift, one a label."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: HeadConfig, base_columns: int, columns: int, like: Tensor) -> None:
        super().__init__()
        self.config = config
        self.base_columns = base_columns
        dtype = parameter_dtype(like.dtype)
        self.otter = Inserted((len(config.labels), columns), like.device, dtype, bias=True)
        # Calibration stands in the configuration, so it is no part of the saved tensors.
        self.register_buffer("scale", torch.tensor(config.scale, device=like.device, dtype=dtype), persistent=False)
        self.register_buffer("shift", torch.tensor(config.shift, device=like.device, dtype=dtype), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Final normed state (..., d + e) -> (..., labels)."""
        state = state.to(self.otter.weight.dtype)
        if self.config.input == "inserted":
            state = state[..., self.base_columns :]
        elif self.config.input == "base":
            state = state[..., : self.base_columns]
        raw = functional.linear(state, self.otter.weight, self.otter.bias)
        if self.config.activation == "sigmoid":
            raw = torch.sigmoid(raw)
        elif self.config.activation == "tanh":
            raw = torch.tanh(raw)
        return raw * self.scale + self.shift
