"""The routes: OpenAI's and llama-server's, with rewards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .._numbers import shown
from ..errors import ConfigError, ContextFullError
from ..model import Otter
from ..scoring import Score, ranked, with_query
from .access import Access
from .answers import DONE, FINGERPRINT, Answer, RefusedError, dumps, event
from .async_otter import AsyncOtter, Call
from .describe import Metrics, openapi, properties
from .options import ServerOptions
from .requests import (
    DETOKENIZE,
    POOLING,
    RERANK,
    SCORE,
    TEMPLATE,
    TOKENIZE,
    Asked,
    Field,
    Json,
    Limits,
    checked,
    read_json,
    read_request,
)
from .streaming import EventResponse, events, merged, told, unless_gone

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_BUSY_SECONDS = 5
_N_SEEDS = 2**32 - 1

_Endpoint = Callable[["Service", Json, Request], Awaitable[Any]]


@dataclass(eq=False)
class Work:
    """A request under way."""

    number: int
    path: str
    n_texts: int
    calls: Sequence[Call] = ()


class Service:
    """A model behind HTTP.

    Args:
        model: What answers.
        options: Who may use it, and how much.
        models: What rules of requests may name, by alias.
        sampling: Defaults of the fields of :class:`otter_gguf.options.SamplingOptions`, where they differ.
    """

    def __init__(
        self,
        model: AsyncOtter,
        options: ServerOptions | None = None,
        models: Mapping[str, Otter] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.options, self.models = model, options or ServerOptions(), dict(models or {})
        llm = model.llm
        self.name = self.options.alias or Path(llm.model_path).name
        self._names = {llm.model_path: self.name, **{other.model_path: alias for alias, other in self.models.items()}}
        self.metrics = Metrics()
        self.under_way: dict[int, Work] = {}
        self.is_ending = False
        self._numbers = count()
        end_tokens = tuple(token for token in range(llm.n_vocab) if llm.model.is_eog(token))
        self.limits = Limits(self.options.max_texts, self.options.max_tokens, self.models, end_tokens, sampling or {})

    def app(self) -> Access:
        """The ASGI application."""
        routes = [
            Route(path, self._post(handler) if is_post else self._get(handler), methods=["POST" if is_post else "GET"])
            for paths, is_post, handler in ROUTES
            for path in paths
        ]
        if self.options.webui:
            routes += [Route(f"/{name}", self._page(*file)) for name, file in _PAGE_FILES.items()]
        errors = {404: _no_route, 405: _no_route}
        return Access(Starlette(routes=routes, exception_handlers=errors), self.options)

    # ---- around every route ----------------------------------------------------------------------------------------

    def _get(self, handler: Any) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return _respond(handler(self))

        return endpoint

    def _post(self, handler: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            headers: Mapping[str, str] = {}
            try:
                body = await asyncio.wait_for(self._body(request), self.options.timeout or None)
                response = _respond(await handler(self, read_json(body), request))
            except (ConnectionError, ClientDisconnect):  # nobody is there to read it
                response = Response(status_code=499)
            except Exception as error:
                answer = self._told(error)
                headers = error.headers if isinstance(error, RefusedError) else {}
                response = _respond(answer, answer["error"]["code"], headers)
            self.metrics.answered(request.url.path, response.status_code)
            return response

        return endpoint

    def _told(self, error: Exception) -> Json:
        """What a client is told of an error: files are called by the names that they have here."""
        body = told(error)[1]
        for path, name in self._names.items():
            body["error"]["message"] = body["error"]["message"].replace(path, name)
        if isinstance(error, ContextFullError):
            body["error"] |= {"n_ctx": self.model.llm.n_ctx, "n_prompt_tokens": error.n_tokens}
        return body

    def _page(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        data = (PAGE / name).read_bytes()
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}

        async def endpoint(request: Request) -> Response:
            return Response(data, media_type=kind, headers=headers)

        return endpoint

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.options.max_body:
                raise RefusedError(413, "invalid_request_error", f"a request has at most {self.options.max_body} bytes")
        return bytes(body)

    def _admit(self, request: Request, n_texts: int = 1) -> Work:
        """A place among the requests under way; :meth:`_leave` must follow. ``RefusedError`` if there is none."""
        if self.is_ending:
            raise RefusedError(503, "unavailable_error", "the server is ending")
        most = self.model.llm.options.n_seq_max + self.options.queue
        if len(self.under_way) >= most:
            message = f"{len(self.under_way)} requests are under way or waiting (--queue)"
            raise RefusedError(503, "unavailable_error", message, retry_after=str(_BUSY_SECONDS))
        work = Work(next(self._numbers), request.url.path, n_texts)
        self.under_way[work.number] = work
        return work

    def _leave(self, work: Work) -> None:
        if self.under_way.pop(work.number, None) and work.calls:
            self.metrics.finished(work.calls)

    @contextmanager
    def _admitted(self, request: Request, n_texts: int = 1) -> Iterator[Work]:
        work = self._admit(request, n_texts)
        try:
            yield work
        finally:
            self._leave(work)

    # ---- texts -----------------------------------------------------------------------------------------------------

    async def completion(self, body: Json, request: Request) -> Any:
        """``/v1/completions``."""
        return await self._texts(read_request(body, is_chat=False, limits=self.limits), request)

    async def chat(self, body: Json, request: Request) -> Any:
        """``/v1/chat/completions``."""
        return await self._texts(read_request(body, is_chat=True, limits=self.limits), request)

    async def _texts(self, asked: Asked, request: Request) -> Any:
        if not self.model.llm.reward_labels and (asked.return_tokens or asked.as_logprobs):
            raise ConfigError("return_tokens and as_logprobs need a model that predicts rewards")
        work, response = self._admit(request, asked.n_texts), None
        seconds = self.options.timeout or None
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        try:
            work.calls = calls = await unless_gone(request, self._begin(asked), seconds)
            answer = Answer(asked, calls, self.name)
            if asked.stream:
                response = EventResponse(events(self._events(answer), deadline, self._told), partial(self._leave, work))
                return response
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            results = await unless_gone(request, self._wholes(calls), left)
            return answer.whole(results)
        finally:
            if response is None:
                self._leave(work)

    async def _begin(self, asked: Asked) -> list[Call]:
        """Read, check and submit the texts."""
        method = "create_chat_completion" if asked.is_chat else "create_completion"
        if asked.seconds is not None:
            end = time.monotonic() + asked.seconds
            asked.options["stopping_criteria"] = lambda tokens, logits: time.monotonic() > end
        seed = asked.options.get("seed")
        calls: list[Call] = []
        try:
            for number in range(asked.n):
                own = {"seed": (seed + number) % _N_SEEDS} if number and type(seed) is int and seed >= 0 else {}
                calls.append(await self.model.prepare(method, asked.prompt, **{**asked.options, **own}))
        except BaseException:
            for call in calls:
                self.model.llm.engine.abandon(call.handles)
            raise
        return calls

    async def _wholes(self, calls: Sequence[Call]) -> list[Any]:
        tasks = [asyncio.ensure_future(self.model.whole(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _events(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        streams = [self.model.chunks(call) for call in answer.calls]
        try:
            async with aclosing(merged(streams)) as chunks:
                async for number, chunk in chunks:
                    yield event(answer.chunk(number, chunk))
            if answer.asked.include_usage:
                yield event(answer.last_chunk())
            yield DONE
        finally:
            for stream, call in zip(streams, answer.calls, strict=True):
                await stream.aclose()
                self.model.llm.engine.abandon(call.handles)  # also of a stream that never began

    # ---- given texts -----------------------------------------------------------------------------------------------

    async def _scores(self, texts: Sequence[tuple[Any, Any]], request: Request) -> list[Score]:
        if len(texts) > self.options.max_texts:
            raise ConfigError(f"{len(texts)} texts, expected at most {self.options.max_texts} in a request")
        with self._admitted(request, len(texts)):
            scores = await unless_gone(request, self.model.score_many(texts), self.options.timeout or None)
        self.metrics.n_prompt += sum(len(score.tokens) for score in scores)
        return scores

    async def rerank(self, body: Json, request: Request) -> Any:
        """``/v1/rerank``: documents by the reward that each has as the response to the query."""
        given = checked(body, RERANK)
        query, documents = given.get("query"), _strings("documents", given.get("documents", given.get("texts")))
        if query is None:
            raise ConfigError("query is missing")
        scores = await self._scores(with_query(query, documents), request)
        results = ranked(scores, documents, given.get("label"), given.get("top_n"))
        if "texts" in given:  # the shape of text-embeddings-inference
            text = [{"text": one["document"]} if given.get("return_text") else {} for one in results]
            return [
                {"index": one["index"], "score": one["relevance_score"], **more}
                for one, more in zip(results, text, strict=True)
            ]
        kept: list[Any] = [
            one if given.get("return_documents") else {key: one[key] for key in ("index", "relevance_score")}
            for one in results
        ]
        return {"model": self.name, "object": "list", "usage": _usage(scores), "results": kept}

    async def score(self, body: Json, request: Request) -> Json:
        """``/score``: the reward of each second text as the response to the first, as vLLM's."""
        given = checked(body, SCORE)
        first = _strings("text_1", given.get("text_1", given.get("queries")))
        second = _strings("text_2", given.get("text_2", given.get("documents")))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise ConfigError(f"text_1 has {len(first)} texts and text_2 {len(second)}: expected one, or as many")
        scores = await self._scores(list(zip(first, second, strict=True)), request)
        column = _column(self.model.llm, given.get("label"))
        data = [
            {"index": index, "object": "score", "score": float(score.rewards[-1, column])}
            for index, score in enumerate(scores)
        ]
        return self._listed("score", data, scores)

    async def pooling(self, body: Json, request: Request) -> Json:
        """``/pooling``: the rewards of every token of given texts, as vLLM's token_classify."""
        given = checked(body, POOLING)
        if given.get("task", "token_classify") != "token_classify":
            raise ConfigError(f"task is {shown(given['task'])}, expected token_classify")
        texts = given.get("input")
        if texts is None:
            raise ConfigError("input is missing")
        if isinstance(texts, str) or not texts or not isinstance(texts[0], (str, list)):
            texts = [texts]
        scores = await self._scores([(text, None) for text in texts], request)
        data = [
            {"index": index, "object": "pooling", "data": score.rewards.tolist()} for index, score in enumerate(scores)
        ]
        return self._listed("pooling", data, scores) | {"labels": list(self.model.llm.reward_labels)}

    def _listed(self, kind: str, data: list[Any], scores: Sequence[Score]) -> Json:
        number = next(self._numbers)
        head = {"id": f"{kind}-{number}", "object": "list", "created": int(time.time()), "model": self.name}
        return {**head, "data": data, "usage": _usage(scores)}

    # ---- tokens ----------------------------------------------------------------------------------------------------

    async def tokenize(self, body: Json, request: Request) -> Json:
        """``/tokenize``, as llama-server's."""
        given = checked(body, TOKENIZE)
        text = given.get("content", "")
        tokens = await self.model.tokenize(text, given.get("add_special", False), given.get("parse_special", True))
        if not given.get("with_pieces"):
            return {"tokens": tokens}
        return {"tokens": [{"id": token, "piece": _piece(self.model.llm, token)} for token in tokens]}

    async def detokenize(self, body: Json, request: Request) -> Json:
        """``/detokenize``."""
        tokens = checked(body, DETOKENIZE).get("tokens", [])
        if not all(type(token) is int for token in tokens):
            raise ConfigError(f"tokens is {shown(tokens)}, expected whole numbers")
        return {"content": (await self.model.detokenize(tokens, special=True)).decode("utf-8", "replace")}

    async def apply_template(self, body: Json, request: Request) -> Json:
        """``/apply-template``: the prompt of a conversation."""
        given = checked(body, TEMPLATE)
        render = self.model.llm.render_chat
        return {"prompt": await self.model.in_thread(render, given.get("messages", []), given.get("tools"))}

    # ---- about the server ------------------------------------------------------------------------------------------

    def models_list(self) -> Json:
        """``/v1/models``."""
        llm = self.model.llm
        meta: Json = {"n_vocab": llm.n_vocab, "n_ctx_train": llm.model.n_ctx_train, "n_ctx": llm.n_ctx}
        meta |= {"reward_labels": list(llm.reward_labels)}
        entry = {
            "id": self.name,
            "object": "model",
            "created": self.metrics.begun,
            "owned_by": "otter-gguf",
            "meta": meta,
        }
        return {"object": "list", "data": [entry]}

    def health(self) -> Any:
        """``/health``: 503 where the server is ending."""
        if self.is_ending:
            error = {"code": 503, "message": "the server is ending", "type": "unavailable_error"}
            return _respond({"error": error}, 503)
        return {"status": "ok"}

    def props(self) -> Json:
        """``/props``: what llama-server tells of a model, with its rewards and the rules that can guide by them."""
        return {**properties(self.model.llm, list(self.models)), "model_alias": self.name, "build_info": FINGERPRINT}

    def slots(self) -> list[Json]:
        """``/slots``: the requests under way, without their texts."""
        return [
            {
                "id": work.number,
                "path": work.path,
                "n_texts": work.n_texts,
                "n_ctx": self.model.llm.n_ctx,
                "is_processing": any(call.first for call in work.calls),
                "n_prompt_tokens": sum(len(prompt) for call in work.calls for prompt in call.run.prompts),
                "n_decoded": sum(call.n_tokens for call in work.calls),
            }
            for work in list(self.under_way.values())
        ]

    def metrics_text(self) -> Response:
        """``/metrics``, for Prometheus."""
        n_running = sum(any(call.first for call in work.calls) for work in self.under_way.values())
        calls = self.model.llm.context.timing()["calls"]
        text = self.metrics.text(n_running, len(self.under_way) - n_running, int(calls))
        return Response(text, media_type="text/plain; version=0.0.4")

    def openapi(self) -> Json:
        """``/openapi.json``."""
        return openapi([(paths[0], is_post, handler.__doc__ or "") for paths, is_post, handler in ROUTES], FIELDS)

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Refuse new requests, give the others their time, then end them by an error."""
        self.is_ending = True
        end = time.monotonic() + self.options.grace
        while self.under_way and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.model.driver.cut(RefusedError(503, "unavailable_error", "the server is ending"))


ROUTES: tuple[tuple[tuple[str, ...], bool, Any], ...] = (
    (("/v1/chat/completions", "/chat/completions"), True, Service.chat),
    (("/v1/completions",), True, Service.completion),
    (("/v1/models", "/models"), False, Service.models_list),
    (("/v1/rerank", "/rerank", "/reranking", "/v1/reranking"), True, Service.rerank),
    (("/score", "/v1/score"), True, Service.score),
    (("/pooling",), True, Service.pooling),
    (("/tokenize",), True, Service.tokenize),
    (("/detokenize",), True, Service.detokenize),
    (("/apply-template",), True, Service.apply_template),
    (("/health", "/v1/health"), False, Service.health),
    (("/metrics",), False, Service.metrics_text),
    (("/props",), False, Service.props),
    (("/slots",), False, Service.slots),
    (("/openapi.json",), False, Service.openapi),
)
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "/v1/rerank": RERANK,
    "/score": SCORE,
    "/pooling": POOLING,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/apply-template": TEMPLATE,
}


def _respond(result: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(result, Response):
        return result
    return Response(dumps(result), code, dict(headers or {}), "application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 404)
    message = f"{request.method} {request.url.path[:200]}: no such route"
    return _respond({"error": {"code": code, "message": message, "type": "not_found_error"}}, code)


def _strings(name: str, given: Any) -> list[str]:
    """One text or several. ``ConfigError`` for anything else."""
    many = [given] if isinstance(given, str) else given
    if not many or not all(isinstance(one, str) for one in many):
        raise ConfigError(f"{name} is {shown(given)}, expected texts")
    return list(many)


def _column(llm: Otter, label: str | None) -> int:
    if label is not None and label not in llm.reward_labels:
        raise ConfigError(f"label is {shown(label)}, the model predicts: {', '.join(llm.reward_labels)}")
    return llm.reward_labels.index(label) if label is not None else 0


def _usage(scores: Sequence[Score]) -> Json:
    n_tokens = sum(len(score.tokens) for score in scores)
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def _piece(llm: Otter, token: int) -> str | list[int]:
    """A token's text, or its bytes where they are none."""
    data = llm.model.token_bytes(token, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
