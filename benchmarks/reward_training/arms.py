"""What is trained and compared: one ``Arm`` a line of the report's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.training.initialisation import Init

Kind = Literal["head", "insertion", "full"]
Layers = Literal["all", "last half", "every second"]


@dataclass(frozen=True)
class Arm:
    """One way to get a reward from a base."""

    name: str
    kind: Kind = "insertion"
    """``head``: a head on the base's state alone (Task-Head-Only); ``full``: a copy of the base, fine-tuned, with a
    head."""
    init: Init = "copy"
    share: float = 1 / 16
    """Inserted share of the base's width and inner size."""
    attention: bool = True
    ffn: bool = True
    layers: Layers = "all"
    loss: Literal["prefix", "final"] = "prefix"

    def insertion(self, base: BaseGeometry) -> InsertionConfig:
        """Sizes for a base; attention gets one KV head, the least there is, up to the share of 1/8, and two above."""
        if self.kind != "insertion":
            return InsertionConfig.uniform(base, 0, 0, 0, heads=(HeadConfig(input="base"),))
        chosen = _chosen(self.layers, base.n_layer)
        n_head_kv = (1 if self.share <= 1 / 8 else 2) if self.attention else 0
        n_ff = round(base.n_ff * self.share) if self.ffn else 0
        return InsertionConfig(
            base,
            round(base.n_embd * self.share),
            tuple(n_head_kv * layer for layer in chosen),
            tuple(n_ff * layer for layer in chosen),
        )


def _chosen(layers: Layers, n_layer: int) -> list[bool]:
    if layers == "last half":
        return [layer >= n_layer // 2 for layer in range(n_layer)]
    if layers == "every second":
        return [layer % 2 == 1 for layer in range(n_layer)]
    return [True] * n_layer


COPY = Arm("insertion, copy")

SUITES: dict[str, tuple[Arm, ...]] = {
    "methods": (
        Arm("Task-Head-Only", kind="head"),
        COPY,
        Arm("insertion, normal", init="normal"),
        Arm("insertion, uniform", init="uniform"),
        Arm("full reward model", kind="full"),
    ),
    "width": tuple(Arm(f"width 1/{part}", share=1 / part) for part in (32, 16, 8, 4)),
    "placement": (
        Arm("attention and FFN, all layers"),
        Arm("attention only", ffn=False),
        Arm("FFN only", attention=False),
        Arm("last half of the layers", layers="last half"),
        Arm("every second layer", layers="every second"),
    ),
    "loss": (
        Arm("Task-Head-Only, prefix loss", kind="head"),
        Arm("insertion, prefix loss"),
        Arm("full reward model, prefix loss", kind="full"),
        Arm("Task-Head-Only, final loss", kind="head", loss="final"),
        Arm("insertion, final loss", loss="final"),
        Arm("full reward model, final loss", kind="full", loss="final"),
    ),
}
