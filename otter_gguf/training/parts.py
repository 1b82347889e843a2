"""The state [h, h'] as one tensor that remembers both parts.

The base's own code sees one tensor of the whole width. What is computed, and what is kept for the backward pass, is
done by parts: no gradient is needed of the base's, which is by far the larger one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PARTS = "otter_parts"


class _Parts(NamedTuple):
    """What :func:`join` joined, as long as the tensor is still at this version."""

    version: int
    base: Tensor
    inserted: Tensor


def join(base: Tensor, inserted: Tensor) -> Tensor:
    """(..., d) and (..., e) -> (..., d + e), which remembers its parts while gradients are recorded.

    The next module then neither copies the base's part out again nor sends a gradient through the whole width, and
    nothing of the whole width is kept for the backward pass.
    """
    inserted = inserted.to(base.dtype)
    x = torch.cat([base, inserted], dim=-1)
    if x.requires_grad:
        setattr(x, _PARTS, _Parts(x._version, base, inserted))
    return x


def base_part(x: Tensor, columns: int) -> Tensor:
    """(..., columns + e) -> (..., columns): the base's, contiguous and without gradient."""
    parts = _parts(x, columns)
    return parts.base if parts else x.detach()[..., :columns].contiguous()


def inserted_part(x: Tensor, columns: int) -> Tensor:
    """(..., columns + e) -> (..., e), contiguous: a view would keep the whole of x for the backward pass."""
    parts = _parts(x, columns)
    return parts.inserted if parts else x[..., columns:].contiguous()


def _parts(x: Tensor, columns: int) -> _Parts | None:
    """The remembered parts, unless something has written to x since, or it is cut elsewhere."""
    parts: _Parts | None = getattr(x, _PARTS, None)
    return parts if parts and parts.version == x._version and parts.base.shape[-1] == columns else None


class Factor(Tensor):
    """What :func:`join` joined, where the base's own code may multiply it, as gated FFNs do: part by part.

    Of a product over the whole width both factors are kept for the backward pass, although the base's part, which is
    by far the larger one, has no gradient. Everything else that is done with it is done as with any tensor.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As of a plain tensor, and the results are plain tensors."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PRODUCTS and not kwargs and all(isinstance(x, Tensor) for x in args):
                return _product(*args)
            return func(*args, **(kwargs or {}))


_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


def factor(x: Tensor) -> Tensor:
    """x as a :class:`Factor`, if it remembers its parts."""
    parts: _Parts | None = getattr(x, _PARTS, None)
    if parts is None:
        return x
    found = x.as_subclass(Factor)
    setattr(found, _PARTS, parts)
    return found


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a * b, of which one is a :class:`Factor`."""
    parts: _Parts = getattr(a if isinstance(a, Factor) else b, _PARTS)
    columns = parts.base.shape[-1]
    if a.shape != b.shape or parts.base.shape[:-1] != a.shape[:-1]:
        return a * b
    return join(base_part(a, columns) * base_part(b, columns), inserted_part(a, columns) * inserted_part(b, columns))
