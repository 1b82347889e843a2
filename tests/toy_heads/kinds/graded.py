"""A kind that is computed as value heads are, by the row of csrc/head_kinds.h that is there already."""

from __future__ import annotations

from otter_gguf.heads import Field, HeadKind


class GradedKind(HeadKind):
    """A reward in so many grades."""

    native = "value"
    module = "otter_gguf.training.modules:ValueHead"
    gives_rewards = True
    fields = (Field("grades", "grades of the reward; graded heads only"),)


KIND = GradedKind()
