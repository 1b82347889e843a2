"""Otter: a language model that predicts rewards beside its tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import _native
from ._logging import logger, set_verbose
from ._numbers import shown
from .arguments import CallArguments, Prompts, make_request, offered_tools, sampling_options
from .chat.template import ChatTemplate, json_schema_of
from .chat.tools import schema_of
from .completion import (
    ChatResponse,
    CompletionResponse,
    Run,
    chat_completion,
    chat_completion_chunks,
    completion,
    completion_chunks,
)
from .context.batches import common_length
from .context.session import BYTES, LanguageModel, Session, sessions_by_name
from .context.state import ContextState, identity
from .engine import Engine, Guidance, Handle, Request, Stream
from .errors import ConfigError, ContextFullError, MismatchError
from .loading import check_files, context_length, load_model, make_context
from .options import LoadArguments, LoadOptions, SamplingArguments, SamplingOptions, takes
from .scoring import Ranked, Score, ranked, with_query
from .steps import Float32, Step
from .text import utf8
from .text_model import TextModel, implements

if TYPE_CHECKING:
    from typing_extensions import Unpack

_T = TypeVar("_T")


class Otter(TextModel):
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
        **options: Unpack[LoadArguments],
    ) -> None:
        self.options = LoadOptions(**options)
        SamplingOptions(seed=seed)
        set_verbose(verbose)
        files = check_files(model_path, otter)
        self.model_path = files.path
        self._sidecar = files.sidecar
        self.insertion = files.insertion
        self.metadata = files.metadata
        self.seed = seed
        self.model: _native.Model = load_model(files, self.options)
        self.context: _native.Context = make_context(self.model, self.options)
        """The lower level: batches of sequences in numpy, see ``docs/python-api.md``. What it is fed directly is
        forgotten by the next call of a method of this class."""
        n_ctx = context_length(self.model, self.options)
        self._session = Session(self.model, self.context, self.model_path, self.insertion, n_ctx, seed)
        self.engine = Engine(self._session)
        """The texts in the context; the methods below are what to use, unless you serve many callers."""
        if n_ctx > self.model.n_ctx_train:
            logger.warning("n_ctx is %d, the model was trained with %d", n_ctx, self.model.n_ctx_train)

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        return self._session

    @property
    def n_ctx(self) -> int:
        return self.session.n_ctx

    @property
    def n_vocab(self) -> int:
        return self.model.n_vocab

    @property
    def n_rewards(self) -> int:
        return self.model.n_rewards

    @property
    def last_rewards(self) -> list[float]:
        last = self.session.streams.last
        return [float(reward) for reward in last.rewards] if last is not None else []

    @property
    def has_chat_template(self) -> bool:
        return self.model.chat_template() is not None

    # ---- text and tokens ---------------------------------------------------------------------------------------

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return self.session.tokenize(text, add_bos=add_bos, special=special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        ids = list(map(operator.index, tokens))
        for odd in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= odd < self.n_vocab:
                raise ConfigError(f"token {odd} is outside the vocabulary of {self.n_vocab}")
        return self.model.detokenize(ids, special=special)

    def token_bos(self) -> int:
        return self.model.bos_token

    def token_eos(self) -> int:
        return self.model.eos_token

    # ---- generating --------------------------------------------------------------------------------------------

    @implements(TextModel.create_completion)
    @takes(make_request)
    def create_completion(
        self,
        prompt: Prompts,
        *,
        max_tokens: int | None = 128,
        stream: bool = False,
        echo: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        prompt_rewards: bool = False,
        **options: Unpack[CallArguments],
    ) -> CompletionResponse | Iterator[CompletionResponse]:
        prompts = self._prompts(prompt)
        if prompt_rewards and len(prompts) > 1:
            raise ConfigError("prompt_rewards: only with a single prompt")
        if prompt_logprobs and logprobs is None:
            raise ConfigError("prompt_logprobs needs logprobs")
        request = make_request(max_tokens, logprobs, prompt_rewards and self.n_rewards > 0, **options)
        request = replace(request, prompt_logprobs=logprobs if prompt_logprobs else None)
        run = self._run(prompts, request, stream=stream)
        echoes = self._echoes(prompt, prompts) if echo else [""] * len(prompts)
        return self._answer(
            run,
            whole=lambda: completion(run, echoes, prompt_rewards),
            chunks=lambda: completion_chunks(run, echoes, prompt_rewards),
            stream=stream,
        )

    __call__ = create_completion

    @implements(TextModel.create_chat_completion)
    @takes(make_request)
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stream: bool = False,
        response_format: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        **options: Unpack[CallArguments],
    ) -> ChatResponse | Iterator[ChatResponse]:
        if response_format is not None:
            if not isinstance(response_format, Mapping):
                raise ConfigError(
                    f"response_format is {shown(response_format)}, expected {{'type': 'json_object'}} or alike"
                )
            options["json_schema"] = json_schema_of(response_format)
        offered = offered_tools(tools, tool_choice)
        if offered and (schema := schema_of(offered, tool_choice)):
            if response_format is not None:
                raise ConfigError("tool_choice and response_format exclude each other")
            options["json_schema"] = schema
        if top_logprobs and not logprobs:
            raise ConfigError("top_logprobs needs logprobs=True")
        request = make_request(max_tokens, top_logprobs if logprobs else None, **options)
        run = self._run([self.tokenize_chat(messages, offered)], request, stream=stream, is_chat=True)
        return self._answer(
            run, whole=lambda: chat_completion(run), chunks=lambda: chat_completion_chunks(run), stream=stream
        )

    def tokenize_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        text = self.render_chat(messages, tools)
        begins_with_bos = text.startswith(self._token_text(self.model.bos_token) or "\0")
        return self.tokenize(text, add_bos=not begins_with_bos, special=True)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        if self._chat_template is None:
            raise ConfigError(f"{self.model_path} has no chat template: use create_completion")
        if not isinstance(messages, Sequence):
            raise ConfigError(f"messages is {shown(messages)}, expected a list of dicts with 'role' and 'content'")
        return self._chat_template.render(messages, tools=tools)

    @takes(SamplingOptions)
    def generate(
        self,
        tokens: Sequence[int],
        *,
        guidance: Guidance | None = None,
        reward_model: LanguageModel | Mapping[str, LanguageModel] | None = None,
        cache_prompt: bool = False,
        **sampling: Unpack[SamplingArguments],
    ) -> Iterator[Step]:
        request = Request(
            self._tokens(tokens),
            sampling=sampling_options(sampling, guidance),
            guidance=guidance,
            reward_models=sessions_by_name(reward_model),
            cache_prompt=cache_prompt,
        )
        return self._steps(self.engine.submit([request], stream=True))

    # ---- state -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.engine.alone(self.session.streams.clear)

    def save_state(self) -> ContextState:
        tokens, data = self.engine.save_state()
        return ContextState(tuple(tokens), data, self._identity)

    def load_state(self, state: ContextState) -> None:
        if not isinstance(state, ContextState):
            raise ConfigError(f"state is a {type(state).__name__}, expected what save_state gives")
        if state.model != self._identity:
            raise MismatchError(f"the saved state is of another model than {self.model_path} with its sidecar")
        if len(state.tokens) > self.n_ctx:
            raise ContextFullError(f"the saved state has {len(state.tokens)} tokens, the context {self.n_ctx}")
        self.engine.load_state(state.tokens, state.data)

    # ---- scoring -----------------------------------------------------------------------------------------------

    def score(self, prompt: str | Sequence[int], response: str | Sequence[int] | None = None) -> Score:
        (score,) = self.score_many([(prompt, response)])
        return score

    def score_many(self, texts: Iterable[tuple[str | Sequence[int], str | Sequence[int] | None]]) -> list[Score]:
        joined = self._to_score(texts)
        return self._scores(joined, self.engine.read([tokens for tokens, _ in joined], "rewards"))

    def rerank(
        self, query: str, documents: Sequence[str], *, label: str | None = None, top_n: int | None = None
    ) -> list[Ranked]:
        return ranked(self.score_many(with_query(query, documents)), documents, label, top_n)

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.engine.close(self._free)
        if template := vars(self).get("_chat_template"):
            template.close()

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

    def _to_score(
        self, texts: Iterable[tuple[str | Sequence[int], str | Sequence[int] | None]]
    ) -> list[tuple[list[int], int]]:
        """Tokens of each text, and how many are the prompt's."""
        if not self.n_rewards:
            raise ConfigError(f"{self.model_path}: a plain model predicts no rewards; give a sidecar (otter=, --otter)")
        return [self._joined(prompt, response) for prompt, response in texts]

    def _scores(self, texts: Sequence[tuple[list[int], int]], answers: Sequence[Float32]) -> list[Score]:
        """Of texts and their rewards."""
        return [
            Score(
                labels=self.reward_labels,
                tokens=np.asarray(tokens, np.int32),
                pieces=tuple(self.model.token_bytes(token, special=True) for token in tokens),
                rewards=rewards,
                n_prompt=n_prompt,
            )
            for (tokens, n_prompt), rewards in zip(texts, answers, strict=True)
        ]

    def _free(self) -> None:
        self.context.close()
        self.model.close()

    def _run(self, prompts: Sequence[list[int]], request: Request, *, stream: bool, is_chat: bool = False) -> Run:
        """Submit the texts; of the request everything but the prompt is taken."""
        if not isinstance(stream, int):  # an array has no truth value
            raise ConfigError(f"stream is {shown(stream)}, expected True or False")
        handles = self.engine.submit([replace(request, prompt=prompt) for prompt in prompts], stream=bool(stream))
        return Run(
            Path(self.model_path).name,
            self.reward_labels,
            prompts,
            handles,
            (news.piece for news in self.engine.follow(handles) if news.piece is not None),
            lambda token: self.model.token_bytes(token, special=True),
            logprobs=request.logprobs is not None,
            step_records=request.step_records,
            is_chat=is_chat,
        )

    def _answer(
        self, run: Run, *, whole: Callable[[], _T], chunks: Callable[[], Generator[_T, None, None]], stream: bool
    ) -> _T | Iterator[_T]:
        """Feed the prompts, and give what the caller asked for: ``whole()``, or an iterator of ``chunks()``."""
        self.engine.start(run.handles)
        return Stream(chunks()) if stream else whole()

    def _steps(self, handles: Sequence[Handle]) -> Iterator[Step]:
        """Feed the prompt, and give the tokens of its text one by one."""
        self.engine.start(handles)
        return Stream(news.event.step for news in self.engine.follow(handles) if news.event is not None)
