"""Scalars for the prefix that ends with a token, one a label: the rewards."""

from __future__ import annotations

from . import HeadKind


class ValueKind(HeadKind):
    """``reward = scale * activation(weight @ state + bias) + shift``, per label; softmax runs over the labels."""

    native = "value"
    module = "otter_gguf.training.modules:ValueHead"
    gives_rewards = True


KIND = ValueKind()
