"""A kind with numbers, a table, checks and a module of its own, and without a row in csrc/head_kinds.h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from otter_gguf.heads import Field, HeadConfig, HeadKind, rewards_of


class BinsKind(HeadKind):
    """How likely a reward is in each of ``n_bins`` bins with trained centres: ``softmax(weight @ state + bias)``."""

    summary = "probabilities of {n_bins} bins"
    native = "bins"
    module = "tests.toy_heads.bins_module:BinsHead"
    fields = (
        Field("n_bins", "bins of the reward; bins heads only", least=2),
        Field("first", "the lowest one", least=0),
    )

    def rows(self, head: HeadConfig) -> int:
        """One a bin."""
        return head.setting("n_bins")

    def tables(self, head: HeadConfig, n_vocab: int) -> dict[str, tuple[int, int]]:
        """The centre of each bin, for each label."""
        return {"centres": (len(head.labels), head.setting("n_bins"))}

    def problems(self, head: HeadConfig) -> Iterator[str]:
        """The lowest bin is one of them."""
        if head.setting("first") >= head.setting("n_bins"):
            yield f"first is {head.setting('first')} of {head.setting('n_bins')} bins"

    def problems_beside(self, head: HeadConfig, heads: Sequence[HeadConfig], n_embd: int) -> Iterator[str]:
        """What it tells apart is a reward."""
        if missing := set(head.labels) - set(rewards_of(heads)):
            yield f"head {head.name!r}: {', '.join(sorted(missing))} is no reward"


KIND = BinsKind()
