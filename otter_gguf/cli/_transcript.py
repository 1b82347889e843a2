"""What ``otter-gguf run`` keeps of a completion, and the files it writes about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..gguf.atomic import atomic_path
from ..text import TextStream

if TYPE_CHECKING:
    from ..text_model import TextModel
    from ._html import Candidate

CANDIDATES_SHOWN = 10
"""Of a step, on a page; the chosen one is always among them."""


@dataclass
class Transcript:
    """What a completion gave."""

    prompt: str = ""
    prompt_rewards: list[float] = field(default_factory=list)
    """(n_rewards,) of the prompt."""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    """A row a token; of a plain model an empty row a chunk."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Records, if they were asked for."""

    def add(self, choice: dict[str, Any]) -> None:
        """The next part of a completion, or the whole."""
        rewards = choice["rewards"]
        self.text += choice["delta"]["content"] if "delta" in choice else choice["text"]
        self.tokens += rewards["tokens"] if rewards else []
        self.rewards += rewards["token_rewards"] if rewards else [[]]
        self.steps += choice.get("steps") or []

    def records(self) -> str:
        """JSON lines of the records."""
        return "".join(json.dumps(record) + "\n" for record in self.steps)

    def page(self, llm: TextModel, column: int) -> str:
        """HTML: the continuation's tokens on the colours of one reward, with what else could have been chosen."""
        from ._colour import RewardScale
        from ._html import heat_map

        assert llm.insertion is not None
        label = llm.reward_labels[column]
        scale = RewardScale(llm.insertion, column, self.prompt_rewards[column])
        choices = {record["step"]: record for record in self.steps if "scores" in record}
        return heat_map(
            Path(llm.model_path).name,
            pieces_of(llm, self.tokens),
            [row[column] for row in self.rewards],
            scale.place,
            prompt=self.prompt,
            label=label,
            ends=scale.ends,
            candidates=[list(_candidates(llm, choices.get(step), label)) for step in range(len(self.tokens))],
        )


def pieces_of(llm: TextModel, tokens: Sequence[int]) -> list[str]:
    """The text of each token; a character that is split over tokens stands with the last of them."""
    stream = TextStream()
    pieces = [stream.push(llm.detokenize([token])) for token in tokens]
    rest = stream.finish()
    return [*pieces[:-1], pieces[-1] + rest] if pieces else []


def _candidates(llm: TextModel, record: dict[str, Any] | None, label: str) -> Iterator[Candidate]:
    """Those of a step that a page has room for."""
    from ._html import Candidate

    if record is None:
        return
    labels = record.get("labels", [])
    column = labels.index(label) if label in labels else None
    for index, token in enumerate(record["candidates"]):
        chosen = index == record["choice"]
        if index < CANDIDATES_SHOWN or chosen:
            piece = llm.detokenize([token], special=True).decode("utf-8", "replace")
            reward = None if column is None else record["rewards"][index][column]
            yield Candidate(piece, reward=reward, score=record["scores"][index], chosen=chosen)


def write_text(path: str, text: str, force: bool) -> None:
    """A text file, whole or not at all."""
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
