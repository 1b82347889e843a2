"""Scores of every possible next token, from the state before it: what a reward is expected to be behind each.

``score(v) = scale * activation(<W state + c, t(v)> + <w, state> + b) + shift`` (``docs/vocabulary-head.md``). Rows 0 to
r - 1 of the weight are W, row r is w; the bias is c, then b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import MAX_LABEL, Activation, Field, HeadConfig, HeadKind, rewards_of


class VocabularyKind(HeadKind):
    """A query of r + 1 numbers and a token table t of rank r; it predicts one reward of a value head."""

    summary = "scores of every next token, rank {rank}"
    native = "vocabulary"
    module = "otter_gguf.training.vocabulary:VocabularyHead"
    fields = (Field("rank", "columns r of the token table; vocabulary heads only"),)
    max_label = MAX_LABEL + 17  # head.label

    def rows(self, head: HeadConfig) -> int:
        """W and w."""
        return head.rank + 1

    def tables(self, head: HeadConfig, n_vocab: int) -> dict[str, tuple[int, int]]:
        """The token table."""
        return {"table": (n_vocab, head.rank)}

    def problems(self, head: HeadConfig) -> Iterator[str]:
        """It has one label."""
        if len(head.labels) != 1:
            yield "a vocabulary head has exactly one label, the reward that it predicts"

    def problems_beside(self, head: HeadConfig, heads: Sequence[HeadConfig], n_embd: int) -> Iterator[str]:
        """The reward that it predicts is there, in the same unit, and the base tells as many directions apart."""
        rewards, label = rewards_of(heads), head.labels[0]
        if label not in rewards:
            known = ", ".join(rewards) or "none"
            yield f"head {head.name!r} predicts {label!r}, which is no reward of a value head ({known})"
        elif head.activation not in ("none", score_activation(rewards[label][0])):
            yield f"head {head.name!r}: activation {head.activation}, expected that of the reward, or none"
        if head.rank > n_embd:
            yield f"head {head.name!r}: rank {head.rank} exceeds the base's width {n_embd}"


def score_activation(source: HeadConfig) -> Activation:
    """The activation of scores that predict one reward of ``source``; one label of a softmax is a sigmoid."""
    return "sigmoid" if source.activation == "softmax" else source.activation


KIND = VocabularyKind()
