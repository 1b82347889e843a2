"""How rows become token ids."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...train_options import TrainOptions


@dataclass(frozen=True)
class DataOptions:
    """How rows become token ids, and which rewards they may train."""

    max_length: int = TrainOptions.max_length
    """Tokens of prompt and response. Longer responses lose their ends; a prompt that leaves them less than half loses
    its beginning."""
    append_eos: bool = TrainOptions.append_eos
    """End each response with the end-of-text token (unless cut), so that the reward of stopping is trained too. Texts
    in steps have labels of their own and stay as they are."""
    step_separator: str = "\n"
    """Ends each step, as in TRL; its last token is where the step's reward stands. Not with steps that are messages."""
    rewards: tuple[str, ...] = ("reward",)
    """``InsertionConfig.reward_labels``; with several, every row names its own in ``reward``."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}, expected at least 2")

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Heads with several labels: the column of each label, by head."""
        heads: dict[str, dict[str, int]] = {}
        for column, reward in enumerate(self.rewards):
            head, dot, label = reward.partition(".")
            if dot:
                heads.setdefault(head, {})[label] = column
        return heads
