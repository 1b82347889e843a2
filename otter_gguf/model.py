"""Otter: a language model that predicts rewards beside its tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, overload

import numpy as np

from . import _native
from ._logging import logger, set_verbose
from ._numbers import shown
from .chat.template import ChatTemplate, json_schema_of
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
from .context.batches import common_length
from .context.session import BYTES, LanguageModel, Session, sessions_by_name
from .context.state import ContextState, identity
from .engine import Engine, Guidance, Handle, LogitsProcessor, Request, StoppingCriterion, Stream
from .errors import ConfigError, ContextFullError, MismatchError
from .guidance.base import Policy
from .loading import check_files, context_length, load_model, make_context
from .options import LoadOptions, SamplingOptions, takes
from .scoring import Score
from .steps import Float32, Step
from .text import stop_strings, utf8

# A policy has chosen its candidates: llama.cpp's cuts apply to its scores where they are asked for, not by themselves.
_NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}

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

    Calls of several threads, and streams, run side by side (``docs/python-api.md``). A callback may not use the model
    that calls it (``EngineError``), but for :meth:`tokenize`, :meth:`detokenize` and :meth:`tokenize_chat`.
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
        n_ctx = context_length(self.model, self.options)
        self.session = Session(self.model, self.context, str(self.model_path), self.insertion, n_ctx, seed)
        self.engine = Engine(self.session)
        """The texts in the context; the methods below are what to use, unless you serve many callers."""
        if n_ctx > self.model.n_ctx_train:
            logger.warning("n_ctx is %d, the model was trained with %d", n_ctx, self.model.n_ctx_train)

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        """Tokens that a text can have, prompt included."""
        return self.session.n_ctx

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
        last = self.session.streams.last
        return [float(reward) for reward in last.rewards] if last is not None else []

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`create_chat_completion` can be used."""
        return self.model.chat_template() is not None

    # ---- text and tokens ---------------------------------------------------------------------------------------

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text. ``special``: read ``<|...|>`` as the token of that name."""
        return self.session.tokenize(text, add_bos=add_bos, special=special)

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
        reward_model: LanguageModel | Mapping[str, LanguageModel] | None = None,
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
            stream: Return an iterator of chunks instead of the whole. It ends where another text needs its place.
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
                stream also: another text needed its place.
            ContextFullError: The prompt is longer than the context.
            MismatchError: ``reward_model`` has another vocabulary.
            EngineError: A callback uses the model that calls it; an interrupt of another thread's call hit the same
            step.
        """
        prompts = self._prompts(prompt)
        if prompt_rewards and len(prompts) > 1:
            raise ConfigError("prompt_rewards: only with a single prompt")
        run = self._run(
            prompts,
            stream=stream,
            sampling=_sampling(sampling, guidance),
            guidance=guidance,
            reward_models=sessions_by_name(reward_model),
            max_tokens=_limit(max_tokens),
            stop=_stop(stop),
            logprobs=logprobs,
            prompt_rewards=prompt_rewards and self.n_rewards > 0,
            step_records=step_records,
            cache_prompt=cache_prompt,
            context_shift=context_shift,
            n_keep=n_keep,
            logits_processors=_callables("logits_processor", logits_processor),
            stopping_criteria=_callables("stopping_criteria", stopping_criteria),
        )
        echoes = self._echoes(prompt, prompts) if echo else [""] * len(prompts)
        if stream:
            return Stream(completion_chunks(run, echoes, prompt_rewards))
        return completion(run, echoes, prompt_rewards)

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
        reward_model: LanguageModel | Mapping[str, LanguageModel] | None = None,
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
        run = self._run(
            [self.tokenize_chat(messages)],
            stream=stream,
            sampling=options,
            guidance=guidance,
            reward_models=sessions_by_name(reward_model),
            max_tokens=_limit(max_tokens),
            stop=_stop(stop),
            logprobs=top_logprobs if logprobs else None,
            step_records=step_records,
            cache_prompt=cache_prompt,
            context_shift=context_shift,
            n_keep=n_keep,
            logits_processors=_callables("logits_processor", logits_processor),
            stopping_criteria=_callables("stopping_criteria", stopping_criteria),
        )
        return Stream(chat_completion_chunks(run)) if stream else chat_completion(run)

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
        reward_model: LanguageModel | Mapping[str, LanguageModel] | None = None,
        cache_prompt: bool = False,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Continue tokens one by one, each as ``(token, rewards)``, until end of text or a full context.

        The prompt is fed before the iterator is returned, which ends where another text needs its place.
        """
        request = Request(
            self._tokens(tokens),
            sampling=_sampling(sampling, guidance),
            guidance=guidance,
            reward_models=sessions_by_name(reward_model),
            cache_prompt=cache_prompt,
        )
        handles = self._begin([request], stream=True)
        return Stream(news.event.step for news in self.engine.follow(handles) if news.event is not None)

    # ---- state -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all texts in the context, with their rewards; streams that are not at their ends are over.

        Calls start afresh by themselves; after this one not even ``cache_prompt`` makes use of a text. ``EngineError``
        while another thread's call is running.
        """
        self.engine.alone(self.session.streams.clear)

    def save_state(self) -> ContextState:
        """The text in the context, so that a later prompt that begins with it need not be fed again."""
        tokens, data = self.engine.save_state()
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
        self.engine.load_state(state.tokens, state.data)

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
            rewards=self.engine.read(tokens, "rewards"),
            n_prompt=n_prompt,
        )

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free context and weights. Idempotent; using the object afterwards is an error."""
        self.engine.close(self._free)
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

    def _joined(self, prompt: str | Sequence[int], response: str | Sequence[int] | None) -> tuple[list[int], int]:
        """Tokens of prompt and response, and how many are the prompt's."""
        if isinstance(prompt, str) and (response is None or isinstance(response, str)):
            alone = self.session.tokenize(prompt, what="the prompt", special=True)
            utf8(response or "", "the response")
            tokens = (
                self.session.tokenize(prompt + response, what="prompt and response", special=True)
                if response
                else alone
            )
            return tokens, common_length(alone, tokens)
        if isinstance(prompt, str) or isinstance(response, str):
            raise ConfigError("score: give prompt and response both as text or both as tokens")
        first = self._tokens(prompt)
        return [*first, *self._tokens(() if response is None else response)], len(first)

    def _prompts(self, prompt: Prompts) -> list[list[int]]:
        """Tokens of each prompt."""
        if isinstance(prompt, (str, *BYTES)) or not isinstance(prompt, Iterable):
            return [self._tokens(prompt)]
        items: list[Any] = list(prompt)
        if not items or isinstance(items[0], (int, np.integer)):
            return [self._tokens(items)]
        return [self._tokens(item) for item in items]

    def _tokens(self, prompt: object) -> list[int]:
        """Of a text, or as given."""
        if isinstance(prompt, str):
            return self.session.tokenize(prompt, what="the prompt", special=True)
        if isinstance(prompt, BYTES) or not isinstance(prompt, Iterable):
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

    def _free(self) -> None:
        self.context.close()
        self.model.close()

    def _begin(self, requests: Sequence[Request], *, stream: bool) -> list[Handle]:
        """Feed the prompts."""
        handles = self.engine.submit(requests, stream=stream)
        self.engine.start(handles)
        return handles

    def _run(self, prompts: Sequence[list[int]], *, stream: bool, **options: Any) -> Run:
        """Feed the prompts; ``options`` are the fields of :class:`otter_gguf.engine.Request`."""
        if not isinstance(stream, int):  # an array has no truth value
            raise ConfigError(f"stream is {shown(stream)}, expected True or False")
        handles = self._begin([Request(prompt, **options) for prompt in prompts], stream=stream)
        pieces = (news.piece for news in self.engine.follow(handles) if news.piece is not None)

        def prompt_rewards(index: int) -> Float32:
            rewards = handles[index].prompt_rewards
            assert rewards is not None
            return rewards

        return Run(
            Path(self.model_path).name,
            self.reward_labels,
            prompts,
            prompt_rewards,
            pieces,
            lambda token: self.model.token_bytes(token, special=True),
            logprobs=options["logprobs"] is not None,
            step_records=options["step_records"],
        )


def _limit(max_tokens: int | None) -> int | None:
    return None if max_tokens == -1 else max_tokens


def _stop(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    if not isinstance(stop, (str, Iterable, NoneType)):
        raise ConfigError(f"stop is {shown(stop)}, expected non-empty strings")
    return stop_strings(stop)


def _callables(what: str, given: object) -> tuple[Callable[..., Any], ...]:
    """One callable, a list of them, or nothing, as a tuple; ``ConfigError`` otherwise."""
    many = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(callable(item) for item in many):
        raise ConfigError(f"{what} is {shown(given)}, expected a callable or a list of them")
    return many


def _sampling(given: dict[str, Any], guidance: Guidance | None) -> SamplingOptions:
    """The checked options of a call."""
    chooses = isinstance(guidance, Policy) and not guidance.is_noop
    return SamplingOptions(**(_NEUTRAL | given if chooses else given))
