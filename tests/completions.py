"""Completions in tests: what is read of them, and a model that chats."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from otter_gguf import Otter, _native
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from tests.guidance.reference import vocabulary_pair
from tests.synthetic_models import Pair


def choices_of(response: Any) -> list[Any]:
    """All choices of a completion."""
    return list(response["choices"])


def choice_of(response: Any) -> Any:
    """The only choice of a completion."""
    (choice,) = response["choices"]
    return choice


def tokens_of(response: Any) -> list[int]:
    """Of the only choice."""
    return list(choice_of(response)["rewards"]["tokens"])


def joined(chunks: Iterable[Any], index: int = 0) -> dict[str, Any]:
    """The chunks of one choice put together, as the whole would be."""
    parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
    rewards = [part["rewards"] for part in parts]
    return {
        "text": "".join(part["text"] for part in parts),
        "tokens": [token for reward in rewards for token in reward["tokens"]],
        "token_rewards": [row for reward in rewards for row in reward["token_rewards"]],
        "text_offset": [place for reward in rewards for place in reward["text_offset"]],
        "finish_reasons": [part["finish_reason"] for part in parts],
    }


def without_end(llm: Otter) -> dict[int, float]:
    """A logit bias with which no text ends by itself."""
    return {token: float("-inf") for token in range(llm.n_vocab) if llm.model.is_eog(token)}


CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


@functools.cache
def chat_pair(template: str = CHATML, name: str = "chat.gguf") -> Pair:
    """The tiny model with both kinds of heads, and a chat template in its base."""
    files = vocabulary_pair()
    base = files.base.with_name(name)
    with _native.GgufFile(str(files.base)) as source:
        metadata = [KeyValue(key, source.key_type(key), source.value(key)) for key in source.keys]
        metadata.append(KeyValue("tokenizer.chat_template", "str", template))
        write_gguf(base, metadata, [_copied(source, tensor) for tensor in source.tensors])
    return Pair(base, files.otter)


def _copied(source: _native.GgufFile, tensor: _native.TensorInfo) -> TensorPlan:
    return TensorPlan(tensor.name, tensor.type, tensor.shape, lambda: [source.tensor_data(tensor.name)])
