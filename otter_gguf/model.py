"""Otter: a language model that predicts rewards beside its tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, overload

import numpy as np

from . import _native
from ._logging import logger, set_verbose
from ._numbers import shown
from .chat import ChatTemplate, json_schema_of
from .claims import Stream, claimed
from .completion import (
    ChatResponse,
    CompletionResponse,
    Run,
    chat_completion,
    chat_completion_chunks,
    completion,
    completion_chunks,
)
from .config import InsertionConfig
from .errors import ConfigError, ContextFullError, MismatchError
from .generation import Lanes, Step, common_length
from .generation.call import Call, Guidance, as_tuple
from .generation.request import LogitsProcessor, Request, StoppingCriterion
from .guidance.base import Policy
from .loading import check_files, context_length, load_model, make_context
from .options import LoadOptions, SamplingOptions, takes
from .scoring import Score
from .state import ContextState, identity
from .text import stop_strings, utf8

# A policy has chosen its candidates: llama.cpp's cuts apply to its scores where they are asked for, not by themselves.
_NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}

_BYTES = (bytes, bytearray, memoryview)

Prompts = str | Sequence[int] | Sequence[str | Sequence[int]]
"""A text, or tokens, or several of either."""


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

    One object is one context: what another thread asks of it during a call, or during a step of a stream, is an
    ``EngineError`` at once (but :meth:`tokenize`, :meth:`detokenize` and :meth:`tokenize_chat`, which need no context).
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
        self._sidecar = files.sidecar
        self.insertion: InsertionConfig | None = files.insertion
        self.metadata: dict[str, Any] = files.metadata
        """The model file's metadata, without long arrays such as the vocabulary."""
        self.seed = seed
        self.model: _native.Model = load_model(files, self.options)
        self.context: _native.Context = make_context(self.model, self.options)
        """The lower level: batches of sequences in numpy, see ``docs/python-api.md``. What it is fed directly is
        forgotten by the next call of a method of this class."""
        self._n_ctx = context_length(self.model, self.options)
        self.lanes = Lanes(
            self.context,
            self.n_rewards,
            reads_heads=self.insertion is not None,
            n_ctx=self._n_ctx,
            name=str(self.model_path),
        )
        """The texts in the context; the methods below are what to use."""
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
        with claimed(self.lanes.claim):
            return [float(reward) for reward in self.lanes.lanes[0].rewards] if self.lanes.lanes else []

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`create_chat_completion` can be used."""
        return self.model.chat_template() is not None

    # ---- text and tokens ---------------------------------------------------------------------------------------

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text. ``special``: read ``<|...|>`` as the token of that name."""
        return self._tokenized(text, "the text", add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The bytes of tokens. ``special``: write special tokens by name instead of leaving them out."""
        ids = list(map(operator.index, tokens))
        for odd in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= odd < self.n_vocab:
                raise ConfigError(f"token {odd} is outside the vocabulary of {self.n_vocab}")
        return self.model.detokenize(ids, special=special)

    def token_bos(self) -> int:
        """The begin-of-text token, -1 if the vocabulary has none."""
        return self.model.bos_token

    def token_eos(self) -> int:
        """The end-of-text token, -1 if the vocabulary has none. Other tokens may end a text too."""
        return self.model.eos_token

    # ---- generating --------------------------------------------------------------------------------------------

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: Literal[False] = False, **options: Any
    ) -> CompletionResponse: ...

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: Literal[True], **options: Any
    ) -> Iterator[CompletionResponse]: ...

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: bool, **options: Any
    ) -> CompletionResponse | Iterator[CompletionResponse]: ...

    @takes(SamplingOptions)
    def create_completion(
        self,
        prompt: Prompts,
        *,
        max_tokens: int | None = 128,
        stop: str | Iterable[str] | None = None,
        stream: bool = False,
        echo: bool = False,
        guidance: Guidance | None = None,
        reward_model: Otter | Mapping[str, Otter] | None = None,
        logprobs: int | None = None,
        prompt_rewards: bool = False,
        step_records: bool = False,
        cache_prompt: bool = False,
        context_shift: bool = False,
        n_keep: int = 0,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        **sampling: Any,
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        """Continue a prompt, or several side by side.

        Args:
            prompt: Text, or tokens (then nothing is added in front). A list of either runs as one batch: the texts are
                those of single calls, up to rounding where kernels depend on the batch.
            max_tokens: At most this many a text; None or -1 = until the context is full.
            stop: End before any of these strings; they are not part of the text.
            stream: Return an iterator of chunks instead of the whole. The next call on the same object ends it.
            echo: Put the prompt before the text.
            guidance: How rewards steer the choice of tokens, such as ``ARGS(weight=1.5)``. With a token-level policy,
                ``top_k``, ``top_p`` and ``min_p`` act on its scores, where they are given; by default they are off.
            reward_model: Whose rewards guide in the place of this model's; or several by name, beside this model's.
            logprobs: Also give log-probabilities of the chosen tokens and of this many most likely ones, under the base
                at temperature 1, without bias, penalties and guidance.
            prompt_rewards: Also give ``choices[0]["prompt_rewards"]``, of every token of the prompt.
            step_records: Also give ``choices[0]["steps"]``: what guidance looked at (``docs/guidance.md``).
            cache_prompt: Reuse what the context holds of this prompt; results may differ in the last bits.
            context_shift: When the context is full, drop half of the tokens behind the first ``n_keep`` and go on.
            logits_processor: (tokens so far, (n_vocab,) logits) -> logits, before everything else; one or a list.
            stopping_criteria: (tokens so far, (n_vocab,) logits) -> whether to end after this token; one or a list.
            sampling: The fields of :class:`otter_gguf.options.SamplingOptions`.

        Returns:
            A dict in OpenAI's shape, a choice for each prompt, with :class:`otter_gguf.completion.Rewards`.

        Raises:
            ConfigError: An option is out of range, contradicts another, or guidance needs what the model lacks; of a
                stream also: another call has ended it.
            ContextFullError: The prompt is longer than the context.
            MismatchError: ``reward_model`` has another vocabulary.
            EngineError: Another thread uses this model, or one that guides the call.
        """
        options = _sampling(sampling, guidance)
        prompts = self._prompts(prompt)
        if prompt_rewards and len(prompts) > 1:
            raise ConfigError("prompt_rewards: only with a single prompt")
        request = _request(
            max_tokens, stop, logprobs, step_records, context_shift, n_keep, logits_processor, stopping_criteria
        )
        echoes = self._echoes(prompt, prompts) if echo else [""] * len(prompts)
        all_rewards = prompt_rewards and self.n_rewards > 0
        call = Call(self, prompts, request, options, guidance, reward_model, cache_prompt, all_rewards)
        with claimed(*call.claims):
            run = self._run(call)
            if not stream:
                return completion(run, echoes, prompt_rewards)
        return Stream(call.claims, completion_chunks(run, echoes, prompt_rewards))

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
        guidance: Guidance | None = None,
        reward_model: Otter | Mapping[str, Otter] | None = None,
        response_format: Mapping[str, Any] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        step_records: bool = False,
        cache_prompt: bool = False,
        context_shift: bool = False,
        n_keep: int = 0,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        **sampling: Any,
    ) -> ChatResponse | Iterator[ChatResponse]:
        """Answer a conversation, by the chat template of the model file.

        Args:
            messages: Dicts with ``role`` and ``content`` (text).
            response_format: ``{"type": "json_object"}`` or ``{"type": "json_object", "schema": {...}}``: the answer is
                JSON (of that schema).
            logprobs: Also give log-probabilities, in OpenAI's shape; ``top_logprobs`` of the most likely tokens.

        The other arguments, the rewards and the errors are those of :meth:`create_completion`.
        """
        if response_format is not None:
            if not isinstance(response_format, Mapping):
                raise ConfigError(
                    f"response_format is {shown(response_format)}, expected {{'type': 'json_object'}} or alike"
                )
            sampling = {**sampling, "json_schema": json_schema_of(response_format)}
        options = _sampling(sampling, guidance)
        if top_logprobs and not logprobs:
            raise ConfigError("top_logprobs needs logprobs=True")
        places = top_logprobs if logprobs else None
        request = _request(
            max_tokens, stop, places, step_records, context_shift, n_keep, logits_processor, stopping_criteria
        )
        tokens = self.tokenize_chat(messages)
        call = Call(self, [tokens], request, options, guidance, reward_model, cache_prompt)
        with claimed(*call.claims):
            run = self._run(call)
            if not stream:
                return chat_completion(run)
        return Stream(call.claims, chat_completion_chunks(run))

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of a conversation, in tokens. ``ConfigError`` if the model file has no chat template."""
        if self._chat_template is None:
            raise ConfigError(f"{self.model_path} has no chat template: use create_completion")
        if not isinstance(messages, Sequence):
            raise ConfigError(f"messages is {shown(messages)}, expected a list of dicts with 'role' and 'content'")
        text = self._chat_template.render(messages)
        begins_with_bos = text.startswith(self._token_text(self.model.bos_token) or "\0")
        return self.tokenize(text, add_bos=not begins_with_bos, special=True)

    @takes(SamplingOptions)
    def generate(
        self,
        tokens: Sequence[int],
        *,
        guidance: Guidance | None = None,
        reward_model: Otter | Mapping[str, Otter] | None = None,
        cache_prompt: bool = False,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Continue tokens one by one, each as ``(token, rewards)``, until end of text or a full context.

        The prompt is fed before the iterator is returned. Another call on the same object ends it.
        """
        options = _sampling(sampling, guidance)
        call = Call(self, [self._tokens(tokens)], Request(), options, guidance, reward_model, reuse=cache_prompt)
        with claimed(*call.claims):
            events = call.events()
        return Stream(call.claims, (event.step for event in events))

    # ---- state -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the text in the context, with its rewards; a stream that is not at its end is over.

        Calls start afresh by themselves; after this one not even ``cache_prompt`` makes use of the text.
        """
        with claimed(self.lanes.claim):
            self.lanes.run += 1
            self.lanes.lanes = []
            self.context.clear()

    def save_state(self) -> ContextState:
        """The text in the context, so that a later prompt that begins with it need not be fed again."""
        tokens, data = self.lanes.state()
        return ContextState(tuple(tokens), data, self._identity)

    def load_state(self, state: ContextState) -> None:
        """Put a saved text into the context; continue it with ``cache_prompt=True``.

        Raises:
            ConfigError: The state is damaged, or of another kind of context.
            MismatchError: It is of other model files.
            ContextFullError: It is longer than this context.
        """
        if not isinstance(state, ContextState):
            raise ConfigError(f"state is a {type(state).__name__}, expected what save_state gives")
        if state.model != self._identity:
            raise MismatchError(f"the saved state is of another model than {self.model_path} with its sidecar")
        if len(state.tokens) > self.n_ctx:
            raise ContextFullError(f"the saved state has {len(state.tokens)} tokens, the context {self.n_ctx}")
        self.lanes.load_state(state.tokens, state.data)

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
            rewards=self.lanes.score(tokens),
            n_prompt=n_prompt,
        )

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free context and weights. Idempotent; using the object afterwards is an error, and so is closing it while
        another thread uses it (``EngineError``)."""
        with claimed(self.lanes.claim):
            self.context.close()
            self.model.close()
        if template := vars(self).get("_chat_template"):
            template.close()

    def __enter__(self) -> Otter:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        labels = ", ".join(self.reward_labels) or "none"
        return f"Otter({self.model_path!r}, {self.model.description}, n_ctx={self.n_ctx}, rewards: {labels})"

    # ---- inside ------------------------------------------------------------------------------------------------

    @cached_property
    def _identity(self) -> str:
        return identity(self.model_path, self._sidecar)

    @cached_property
    def _chat_template(self) -> ChatTemplate | None:
        source = self.model.chat_template()
        if source is None:
            return None
        bos, eos = self._token_text(self.model.bos_token), self._token_text(self.model.eos_token)
        return ChatTemplate(source, path=self.model_path, bos_token=bos, eos_token=eos)

    def _token_text(self, token: int) -> str:
        return self.model.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _tokenized(self, text: object, what: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokens of an argument, which messages call ``what``."""
        if not isinstance(text, (str, *_BYTES)):  # bytes(n) of a number n would take n bytes
            raise ConfigError(f"{what} is a {type(text).__name__}, expected str or bytes")
        data = utf8(text, what) if isinstance(text, str) else bytes(text)
        return self.model.tokenize(data, add_special=add_bos, parse_special=special)

    def _joined(self, prompt: str | Sequence[int], response: str | Sequence[int] | None) -> tuple[list[int], int]:
        """Tokens of prompt and response, and how many are the prompt's."""
        if isinstance(prompt, str) and (response is None or isinstance(response, str)):
            alone = self._tokenized(prompt, "the prompt")
            utf8(response or "", "the response")
            tokens = self._tokenized(prompt + response, "prompt and response") if response else alone
            return tokens, common_length(alone, tokens)
        if isinstance(prompt, str) or isinstance(response, str):
            raise ConfigError("score: give prompt and response both as text or both as tokens")
        first = self._tokens(prompt)
        return [*first, *self._tokens(() if response is None else response)], len(first)

    def _prompts(self, prompt: Prompts) -> list[list[int]]:
        """Tokens of each prompt."""
        if isinstance(prompt, (str, *_BYTES)) or not isinstance(prompt, Iterable):
            return [self._tokens(prompt)]
        items: list[Any] = list(prompt)
        if not items or isinstance(items[0], (int, np.integer)):
            return [self._tokens(items)]
        return [self._tokens(item) for item in items]

    def _tokens(self, prompt: object) -> list[int]:
        """Of a text, or as given."""
        if isinstance(prompt, str):
            return self._tokenized(prompt, "the prompt")
        if isinstance(prompt, _BYTES) or not isinstance(prompt, Iterable):
            raise ConfigError(f"the prompt is {shown(prompt)}, expected text or tokens")
        tokens = list(prompt)
        for token in tokens:
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < self.n_vocab:
                raise ConfigError(f"the prompt has {shown(token)}, expected tokens from 0 to {self.n_vocab - 1}")
        return [int(token) for token in tokens]

    def _echoes(self, prompt: Prompts, prompts: list[list[int]]) -> list[str]:
        """The prompts as they were given; the text of those in tokens."""
        return [
            item if isinstance(item, str) else self.detokenize(tokens).decode("utf-8", "replace")
            for item, tokens in zip([prompt] if isinstance(prompt, str) else prompt, prompts, strict=False)
        ]

    def _run(self, call: Call) -> Run:
        """Feed the prompts."""
        return Run(
            Path(self.model_path).name,
            self.reward_labels,
            call.prompts,
            call.prompt_rewards,
            call.pieces(),
            lambda token: self.model.token_bytes(token, special=True),
            logprobs=call.request.logprobs is not None,
            step_records=call.request.step_records,
        )


def _request(
    max_tokens: int | None,
    stop: str | Iterable[str] | None,
    logprobs: int | None,
    step_records: bool,
    context_shift: bool,
    n_keep: int,
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None,
) -> Request:
    """The checked request of a call."""
    if not isinstance(stop, (str, Iterable, NoneType)):
        raise ConfigError(f"stop is {shown(stop)}, expected non-empty strings")
    return Request(
        max_tokens=None if max_tokens == -1 else max_tokens,
        stop=stop_strings(stop),
        logits_processors=as_tuple("logits_processor", logits_processor),
        stopping_criteria=as_tuple("stopping_criteria", stopping_criteria),
        logprobs=logprobs,
        step_records=step_records,
        context_shift=context_shift,
        n_keep=n_keep,
    )


def _sampling(given: dict[str, Any], guidance: Guidance | None) -> SamplingOptions:
    """The checked options of a call."""
    chooses = isinstance(guidance, Policy) and not guidance.off
    return SamplingOptions(**(_NEUTRAL | given if chooses else given))
