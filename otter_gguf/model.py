"""Otter: a language model that predicts rewards beside its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from . import _native
from ._logging import logger, set_verbose
from .chat import ChatTemplate
from .completion import (
    ChatResponse,
    CompletionResponse,
    Run,
    chat_completion,
    chat_completion_chunks,
    completion,
    completion_chunks,
    make_pieces,
)
from .config import InsertionConfig
from .errors import ConfigError
from .generation import Float32, Step, Text, common_length
from .guidance import Policy
from .loading import check_files, context_length, load_model, make_context
from .options import LoadOptions, SamplingOptions, takes
from .scoring import Score
from .text import TextStream

# A policy draws from its candidates itself: these would do nothing.
_NOT_WITH_GUIDANCE = ("top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")


class Otter:
    """A base GGUF with its sidecar, ready to generate and to score.

    Args:
        model_path: The base (for a split model its first shard), or a merged file.
        otter: The sidecar. Without one, and unless the file is merged, it is a plain model without rewards.
        seed: For calls that name none; -1 = another one each time.
        verbose: Send llama.cpp's log to the logger ``otter_gguf`` (stderr if nothing listens).
        options: The fields of :class:`otter_gguf.options.LoadOptions`; unknown names are a ``TypeError``.

    Raises:
        FileError: A file is damaged, hostile, or of another kind.
        MismatchError: The sidecar was made for another base.
        UnsupportedError: A file needs something that this version lacks.
        ConfigError: An option is out of range or contradicts another.
        EngineError: llama.cpp cannot load it (its own words are in the message).

    One object is one context: not for two threads at once.
    """

    @takes(LoadOptions)
    def __init__(
        self,
        model_path: str | Path,
        *,
        otter: str | Path | None = None,
        seed: int = -1,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        self.options = LoadOptions(**options)
        SamplingOptions(seed=seed)
        set_verbose(verbose)
        files = check_files(model_path, otter)
        self.model_path = files.path
        self.insertion: InsertionConfig | None = files.insertion
        self.metadata: dict[str, Any] = files.metadata
        """The model file's metadata, without long arrays such as the vocabulary."""
        self.seed = seed
        self.model: _native.Model = load_model(files, self.options)
        self.context: _native.Context = make_context(self.model, self.options)
        """The lower level: batches of sequences in numpy, see ``docs/python-api.md``. What it is fed directly is
        forgotten by the next call of a method of this class."""
        self._n_ctx = context_length(self.model, self.options)
        self._text = Text(self.model, self.context, self.reward_labels, self._n_ctx)
        if self._n_ctx > self.model.n_ctx_train:
            logger.warning("n_ctx is %d, the model was trained with %d", self._n_ctx, self.model.n_ctx_train)

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        """Tokens that a text can have, prompt included."""
        return self._n_ctx

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self.model.n_vocab

    @property
    def n_rewards(self) -> int:
        """Rewards of a token; 0 for a plain model."""
        return self.model.n_rewards

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """What each reward means."""
        return self.insertion.reward_labels if self.insertion else ()

    @property
    def vocabulary_heads(self) -> tuple[str, ...]:
        """Names of the heads that score every next token. The index of a name is the ``head`` of ``queries`` and
        ``vocabulary_scores`` of :attr:`context`."""
        return tuple(head.name for head in self.insertion.vocabulary_heads) if self.insertion else ()

    @property
    def last_rewards(self) -> list[float]:
        """The rewards of the text as it stands in the context; empty for a plain model."""
        return [float(reward) for reward in self._text.rewards]

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`create_chat_completion` can be used."""
        return self.model.chat_template() is not None

    # ---- text and tokens ---------------------------------------------------------------------------------------

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text. ``special``: read ``<|...|>`` as the token of that name."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        return self.model.tokenize(data, add_special=add_bos, parse_special=special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The bytes of tokens. ``special``: write special tokens by name instead of leaving them out."""
        return self.model.detokenize(list(tokens), special=special)

    # ---- generating --------------------------------------------------------------------------------------------

    @overload
    def create_completion(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Any
    ) -> CompletionResponse: ...

    @overload
    def create_completion(
        self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any
    ) -> Iterator[CompletionResponse]: ...

    @overload
    def create_completion(
        self, prompt: str | Sequence[int], *, stream: bool, **options: Any
    ) -> CompletionResponse | Iterator[CompletionResponse]: ...

    @takes(SamplingOptions)
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 128,
        stop: str | Iterable[str] | None = None,
        stream: bool = False,
        echo: bool = False,
        guidance: Policy | None = None,
        prompt_rewards: bool = False,
        cache_prompt: bool = False,
        **sampling: Any,
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        """Continue a prompt.

        Args:
            prompt: Text, or tokens (then nothing is added in front).
            max_tokens: At most this many; None or -1 = until the context is full.
            stop: End before any of these strings; they are not part of the text.
            stream: Return an iterator of chunks instead of the whole.
            echo: Put the prompt before the text.
            guidance: How rewards steer the choice of tokens, such as ``ARGS(weight=1.5)``.
            prompt_rewards: Also give ``choices[0]["prompt_rewards"]``, of every token of the prompt.
            cache_prompt: Reuse what the context holds of this prompt since the last call. Faster for a growing
                conversation; results may differ from a fresh start in the last bits.
            sampling: The fields of :class:`otter_gguf.options.SamplingOptions`.

        Returns:
            A dict in OpenAI's shape. ``choices[0]["rewards"]`` holds ``labels``, ``tokens``, ``text_offset``,
            ``token_rewards`` (tokens x labels) and ``reward``, the first label's at the end; None for a plain model.

        Raises:
            ConfigError: An option is out of range, contradicts another, or guidance needs what the model lacks.
            ContextFullError: The prompt is longer than the context.
        """
        options = _sampling(sampling, guidance)
        tokens = self.tokenize(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        run = self._run(tokens, max_tokens, TextStream(stop), guidance, prompt_rewards, cache_prompt, options)
        text = prompt if isinstance(prompt, str) else self.detokenize(tokens).decode("utf-8", "replace")
        make = completion_chunks if stream else completion
        return make(run, text if echo else "", prompt_rewards)

    __call__ = create_completion

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Any
    ) -> ChatResponse: ...

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
    ) -> Iterator[ChatResponse]: ...

    @takes(SamplingOptions)
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stop: str | Iterable[str] | None = None,
        stream: bool = False,
        guidance: Policy | None = None,
        cache_prompt: bool = False,
        **sampling: Any,
    ) -> ChatResponse | Iterator[ChatResponse]:
        """Answer a conversation, by the chat template of the model file.

        Args:
            messages: Dicts with ``role`` and ``content`` (text).

        The other arguments, the rewards and the errors are those of :meth:`create_completion`.
        """
        options = _sampling(sampling, guidance)
        tokens = self.tokenize_chat(messages)
        run = self._run(tokens, max_tokens, TextStream(stop), guidance, False, cache_prompt, options)
        return chat_completion_chunks(run) if stream else chat_completion(run)

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of a conversation, in tokens. ``ConfigError`` if the model file has no chat template."""
        if self._chat_template is None:
            raise ConfigError(f"{self.model_path} has no chat template: use create_completion")
        text = self._chat_template.render(messages)
        begins_with_bos = text.startswith(self._token_text(self.model.bos_token) or "\0")
        return self.tokenize(text, add_bos=not begins_with_bos, special=True)

    @takes(SamplingOptions)
    def generate(
        self,
        tokens: Sequence[int],
        *,
        guidance: Policy | None = None,
        cache_prompt: bool = False,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Continue tokens one by one, each as ``(token, rewards)``, until end of text or a full context.

        The prompt is fed before the iterator is returned. Another call on the same object ends it.
        """
        return self._steps(list(tokens), guidance, False, cache_prompt, _sampling(sampling, guidance))[1]

    # ---- scoring -----------------------------------------------------------------------------------------------

    def score(self, prompt: str | Sequence[int], response: str | Sequence[int] | None = None) -> Score:
        """The rewards of every token of a given text; nothing is generated.

        Args:
            prompt: The text, or its beginning.
            response: Its rest. Prompt and response are tokenized as one text (tokens are put together), so the token
                that crosses the border, if there is one, counts to the response.

        Raises:
            ConfigError: The model predicts no rewards, or there is no token.
            ContextFullError: The text is longer than the context.
        """
        if not self.n_rewards:
            raise ConfigError(f"{self.model_path}: a plain model predicts no rewards; give a sidecar (otter=, --otter)")
        tokens, n_prompt = self._joined(prompt, response)
        return Score(
            labels=self.reward_labels,
            tokens=np.asarray(tokens, np.int32),
            pieces=tuple(self.model.token_bytes(token, special=True) for token in tokens),
            rewards=self._text.score(tokens),
            n_prompt=n_prompt,
        )

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free context and weights. Idempotent; using the object afterwards is an error."""
        self.context.close()
        self.model.close()

    def __enter__(self) -> Otter:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        labels = ", ".join(self.reward_labels) or "none"
        return f"Otter({self.model_path!r}, {self.model.description}, n_ctx={self.n_ctx}, rewards: {labels})"

    # ---- inside ------------------------------------------------------------------------------------------------

    @cached_property
    def _chat_template(self) -> ChatTemplate | None:
        source = self.model.chat_template()
        if source is None:
            return None
        bos, eos = self._token_text(self.model.bos_token), self._token_text(self.model.eos_token)
        return ChatTemplate(source, path=self.model_path, bos_token=bos, eos_token=eos)

    def _token_text(self, token: int) -> str:
        return self.model.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _joined(self, prompt: str | Sequence[int], response: str | Sequence[int] | None) -> tuple[list[int], int]:
        """Tokens of prompt and response, and how many are the prompt's."""
        if isinstance(prompt, str) and (response is None or isinstance(response, str)):
            alone = self.tokenize(prompt, special=True)
            tokens = self.tokenize(prompt + response, special=True) if response else alone
            return tokens, common_length(alone, tokens)
        if isinstance(prompt, str) or isinstance(response, str):
            raise ConfigError("score: give prompt and response both as text or both as tokens")
        return [*prompt, *(response or ())], len(prompt)

    def _run(
        self,
        tokens: list[int],
        max_tokens: int | None,
        text: TextStream,
        guidance: Policy | None,
        prompt_rewards: bool,
        cache_prompt: bool,
        options: SamplingOptions,
    ) -> Run:
        if max_tokens is not None and max_tokens < -1:
            raise ConfigError(f"max_tokens is {max_tokens}, expected 0 or more, or -1 (until the context is full)")
        limit = None if max_tokens == -1 else max_tokens
        rewards, steps = self._steps(tokens, guidance, prompt_rewards, cache_prompt, options)
        pieces = make_pieces(steps, text, self.model.token_bytes, limit, lambda: self._text.ended)
        return Run(Path(self.model_path).name, self.reward_labels, tokens, rewards, pieces)

    def _steps(
        self,
        tokens: list[int],
        guidance: Policy | None,
        all_rewards: bool,
        reuse: bool,
        options: SamplingOptions,
    ) -> tuple[Float32, Iterator[Step]]:
        """Feed a prompt: its rewards, and the tokens to come."""
        seed = self.seed if options.seed is None else options.seed
        if guidance is not None:
            guidance.check(self.reward_labels)
        sampler = self._sampler(options, seed, tokens)
        rewards = self._text.start(tokens, reuse=reuse, all_rewards=all_rewards and self.n_rewards > 0)
        if guidance is not None:
            return rewards, self._text.guided(guidance, options.temperature, None if seed < 0 else seed)
        return rewards, self._text.plain(sampler)

    def _sampler(self, options: SamplingOptions, seed: int, tokens: list[int]) -> _native.Sampler:
        sampler = _native.Sampler(
            self.model,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=options.repeat_last_n,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            seed=seed,
        )
        if options.has_penalties:
            for token in tokens:
                sampler.accept(token)
        return sampler


def _sampling(given: dict[str, Any], guidance: Policy | None) -> SamplingOptions:
    """The checked options of a call."""
    useless = [name for name in _NOT_WITH_GUIDANCE if name in given] if guidance else []
    if useless:
        raise ConfigError(
            f"{', '.join(useless)}: without effect under guidance, which draws from its own n_candidates; leave out"
        )
    return SamplingOptions(**given)
