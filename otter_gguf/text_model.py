"""What users meet: a model that continues and scores texts, in this process or in one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from .arguments import ChatArguments, CompletionArguments, Prompts, make_request
from .completion import ChatResponse, CompletionResponse
from .config import InsertionConfig
from .context.session import LanguageModel, Session
from .context.state import ContextState
from .engine import Guidance
from .options import LoadOptions, SamplingArguments, SamplingOptions, takes
from .scoring import Ranked, Score
from .steps import Step

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .arguments import CallArguments

_F = TypeVar("_F", bound=Callable[..., Any])


def implements(declared: _F) -> Callable[[Callable[..., Any]], _F]:
    """Decorator: type checkers read the overloads of the abstract method, which are not written again."""
    return lambda method: cast(_F, method)


class TextModel(ABC):
    """A language model that predicts rewards beside its tokens: what :class:`otter_gguf.Otter` and
    :class:`otter_gguf.IsolatedOtter` have in common."""

    model_path: str
    insertion: InsertionConfig | None
    """None for a plain model."""
    metadata: dict[str, Any]
    """The model file's metadata, without long arrays such as the vocabulary."""
    options: LoadOptions
    """What was asked for at load."""
    seed: int
    """For calls that name none; -1 = another one each time."""

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def session(self) -> Session:
        """What it runs in; out of reach where that is another process (``ConfigError``)."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Tokens that a text can have, prompt included."""

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""

    @property
    @abstractmethod
    def n_rewards(self) -> int:
        """Rewards of a token; 0 for a plain model."""

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """What each reward means."""
        return self.insertion.reward_labels if self.insertion else ()

    @property
    def vocabulary_heads(self) -> tuple[str, ...]:
        """Names of the heads that score every next token. The index of a name is the ``head`` of ``queries`` and
        ``vocabulary_scores`` of :attr:`otter_gguf.Otter.context`."""
        return tuple(head.name for head in self.insertion.vocabulary_heads) if self.insertion else ()

    @property
    @abstractmethod
    def last_rewards(self) -> list[float]:
        """The rewards of the text as it stands in the context; empty for a plain model."""

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """Whether :meth:`create_chat_completion` can be used."""

    # ---- text and tokens ---------------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text. ``special``: read ``<|...|>`` as the token of that name."""

    @abstractmethod
    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The bytes of tokens. ``special``: write special tokens by name instead of leaving them out."""

    @abstractmethod
    def token_bos(self) -> int:
        """The begin-of-text token, -1 if the vocabulary has none."""

    @abstractmethod
    def token_eos(self) -> int:
        """The end-of-text token, -1 if the vocabulary has none. Other tokens may end a text too."""

    # ---- generating --------------------------------------------------------------------------------------------

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: Literal[False] = False, **options: Unpack[CompletionArguments]
    ) -> CompletionResponse: ...

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: Literal[True], **options: Unpack[CompletionArguments]
    ) -> Iterator[CompletionResponse]: ...

    @overload
    def create_completion(
        self, prompt: Prompts, *, stream: bool, **options: Unpack[CompletionArguments]
    ) -> CompletionResponse | Iterator[CompletionResponse]: ...

    @abstractmethod
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
            prompt_logprobs: Also give ``choices[i]["prompt_logprobs"]``, of every token of the prompt behind the first,
                with as many most likely ones as ``logprobs`` says.
            prompt_rewards: Also give ``choices[0]["prompt_rewards"]``, of every token of the prompt.
            step_records: Also give ``choices[0]["steps"]``: what guidance looked at (``docs/guidance.md``).
            cache_prompt: Reuse what the context holds of this prompt; results may differ in the last bits.
            context_shift: When the context is full, drop half of the tokens behind the first ``n_keep`` and go on.
            logits_processor: (tokens so far, (n_vocab,) logits) -> logits, before everything else; one or a list.
            stopping_criteria: (tokens so far, (n_vocab,) logits) -> whether to end after this token; one or a list.
            options: The fields of :class:`otter_gguf.options.SamplingOptions`.

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

    __call__ = create_completion

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatArguments],
    ) -> ChatResponse: ...

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Unpack[ChatArguments]
    ) -> Iterator[ChatResponse]: ...

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **options: Unpack[ChatArguments]
    ) -> ChatResponse | Iterator[ChatResponse]: ...

    @abstractmethod
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
        """Answer a conversation, by the chat template of the model file.

        Args:
            messages: Dicts with ``role`` and ``content``: text, or a list of parts ``{"type": "text", "text": ...}``.
            response_format: ``{"type": "json_object"}`` or ``{"type": "json_object", "schema": {...}}``: the answer is
                JSON (of that schema).
            tools: Functions that may be called, in OpenAI's shape, where the template knows them. The answer's text
                holds the calls as the model writes them.
            tool_choice: "none", "auto", "required" or a function: then the answer is a call, as JSON.
            logprobs: Also give log-probabilities, in OpenAI's shape; ``top_logprobs`` of the most likely tokens.

        The other arguments, the rewards and the errors are those of :meth:`create_completion`.
        """

    @abstractmethod
    def tokenize_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The prompt of a conversation, in tokens. ``ConfigError`` if the model file has no chat template."""

    @abstractmethod
    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The prompt of a conversation, as text. ``ConfigError`` if the model file has no chat template."""

    @abstractmethod
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
        """Continue tokens one by one, each as ``(token, rewards)``, until end of text or a full context.

        The prompt is fed before the iterator is returned, which ends where another text needs its place.
        """

    # ---- state -------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset(self) -> None:
        """Forget all texts in the context, with their rewards; streams that are not at their ends are over.

        Calls start afresh by themselves; after this one not even ``cache_prompt`` makes use of a text. ``EngineError``
        while another thread's call is running.
        """

    @abstractmethod
    def save_state(self) -> ContextState:
        """The text in the context, so that a later prompt that begins with it need not be fed again."""

    @abstractmethod
    def load_state(self, state: ContextState) -> None:
        """Put a saved text into the context; continue it with ``cache_prompt=True``.

        Raises:
            ConfigError: The state is damaged, or of another kind of context.
            MismatchError: It is of other model files.
            ContextFullError: It is longer than this context.
        """

    # ---- scoring -----------------------------------------------------------------------------------------------

    @abstractmethod
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

    @abstractmethod
    def score_many(self, texts: Iterable[tuple[str | Sequence[int], str | Sequence[int] | None]]) -> list[Score]:
        """The scores of several texts, each a prompt with its response or None. They share batches, as many as there
        are sequences (``n_seq_max``), so rewards may differ from those of :meth:`score` in the last bits. Errors as
        there."""

    @abstractmethod
    def rerank(
        self, query: str, documents: Sequence[str], *, label: str | None = None, top_n: int | None = None
    ) -> list[Ranked]:
        """Documents by the reward that each has as the response to the query, best first.

        Args:
            query: What stands before each document, with whatever separates them, such as a line break.
            documents: The texts to compare.
            label: Which reward; None = the first.
            top_n: Give so many of them; None = all.

        Raises:
            ConfigError: There is no such label, or an argument is of a wrong type or out of range.
            ContextFullError: Query and document are together longer than the context.
        """

    # ---- life --------------------------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Free the model with its context. Idempotent; using the object afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
