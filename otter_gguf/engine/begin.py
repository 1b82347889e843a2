"""From a request to a job: what is checked before anything is fed, and how a text begins."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Literal

import numpy as np

from .. import _native
from ..context.batches import common_beginning
from ..context.session import Session
from ..context.streams import Stream
from ..errors import ConfigError, ContextFullError
from ..guidance.base import AuxiliaryStream, Capabilities, Policy, Signal
from ..guidance.search import Search
from ..steps import Float32, Int32
from .feeds import Prefill, Told, Until, Wish
from .guided import Guide, guided
from .job import Handle, Job
from .readers import AuxiliaryReader, RewardReader, check_reward_model, labels_by_name
from .request import Guidance, Request, sequences_needed
from .samplers import make_sampler, seed_of
from .search import BranchReader, Workspace
from .text import Text, Top, plain

What = Literal["rewards", "log_probabilities"]


def jobs_of(session: Session, handles: Sequence[Handle]) -> list[Job]:
    """The texts of one call. Errors as :meth:`otter_gguf.engine.Engine.submit`."""
    jobs: list[Job] = []
    for handle in handles:
        request = handle.request
        assert request is not None
        guidance = checked_guidance(session, request)
        _check_shift(session, request, guidance)
        session.streams.check_prompt(request.prompt)
        sampler = make_sampler(session, request.sampling, request.prompt)
        needs, begin = _needs(session, request, guidance), _Beginning(guidance, sampler, jobs)
        # A search may need the whole cache: those of one call follow each other.
        after = jobs[-1].handle if isinstance(guidance, Search) and jobs else None
        jobs.append(Job(session, handle, needs, begin, after))
    return jobs


def reading_job(session: Session, handle: Handle, tokens: Sequence[int], what: What) -> Job:
    """A text that is read and not continued."""
    session.streams.check_prompt(tokens)

    async def read(job: Job) -> None:
        stream = job.streams[session]
        job.handle.result = await Prefill(session.streams, [(stream, list(tokens))], what)

    return Job(session, handle, {session: 1}, read)


# ---- checks ----------------------------------------------------------------------------------------------------


def checked_guidance(session: Session, request: Request) -> Guidance | None:
    """The request's guidance with its texts in tokens; None where it has no effect. ``ConfigError`` if it cannot work
    with what there is."""
    guidance = request.guidance
    if guidance is None or guidance.is_noop:
        return None
    guidance = guidance.with_tokens(lambda text: session.tokenize(text, special=True))
    others = (label for name, other in request.reward_models.items() for label in labels_by_name(name, other))
    labels = (*_own_labels(session, request), *others)
    guidance.check(Capabilities(labels, session.vocabulary_heads, session.n_vocab))
    return guidance


def _own_labels(session: Session, request: Request) -> tuple[str, ...]:
    """Rewards of the model itself, unless a reward model takes their place."""
    return () if "" in request.reward_models else session.reward_labels


def _check_shift(session: Session, request: Request, guidance: Guidance | None) -> None:
    if request.shifts is None:
        return
    if not session.context.can_shift:
        raise ConfigError(
            f"context_shift: llama.cpp cannot shift the context of {session.model.description}: not every architecture "
            "can be shifted, and of cached keys (type_k, -ctk) f16 and f32 can"
        )
    if request.n_keep > session.n_ctx - 2:
        most = session.n_ctx - 2
        raise ConfigError(f"n_keep is {request.n_keep}, expected at most {most}: a shift must free something")
    if isinstance(guidance, Search):
        raise ConfigError("context_shift: not with a search, which compares whole texts")
    if guidance is not None and (guidance.auxiliary_streams() or request.reward_models):
        raise ConfigError("context_shift: not with a reward_model, nor with a policy that follows a second text")


def _needs(session: Session, request: Request, guidance: Guidance | None) -> dict[Session, int]:
    """Sequences of each model's context. ``ConfigError`` if one was loaded with fewer."""
    if not isinstance(guidance, Policy):
        count = sequences_needed(guidance)
        needs = dict.fromkeys((session, *(request.reward_models.values() if guidance is not None else ())), count)
    else:
        needs = _policy_needs(session, request, guidance)
    for other in request.reward_models.values() if guidance is not None else ():
        check_reward_model(session, other)
    for model, count in needs.items():
        most, name = model.context.n_seq_max, type(guidance).__name__
        if count > most:
            of = "" if model is session else f" of {model.path}"
            raise ConfigError(f"{name} needs n_seq_max={count}{of} at load (-np), now {most}")
    return needs


def _policy_needs(session: Session, request: Request, policy: Policy) -> dict[Session, int]:
    """A sequence for each candidate where its rewards are read, else one; and one for each auxiliary stream."""
    others = {labels_by_name(name, other): other for name, other in request.reward_models.items()}
    own = _own_labels(session, request)
    labels = (*own, *(label for theirs in others for label in theirs))
    read = {*policy.reads(labels)} if Signal.VALUE in policy.signal() else set()
    needs = {session: 1 if read.isdisjoint(own) else policy.n_candidates}
    for theirs, other in others.items():
        needs[other] = 1 if read.isdisjoint(theirs) else policy.n_candidates
    for auxiliary in policy.auxiliary_streams():
        model = session if auxiliary.model is None else auxiliary.model.session
        session.check_vocabulary(model)
        needs[model] = needs.get(model, 0) + 1
    return needs


# ---- the beginning of a text -----------------------------------------------------------------------------------


class _Beginning:
    """Feeds a prompt, also to what reads along, and lets tokens be chosen.

    Args:
        guidance: What chooses; None = llama.cpp's samplers alone.
        group: All texts of the call: a beginning that they have in common is fed once.
    """

    def __init__(self, guidance: Guidance | None, sampler: _native.Sampler, group: Sequence[Job]) -> None:
        self.guidance, self.sampler, self.group = guidance, sampler, group

    async def __call__(self, job: Job) -> None:
        request, session = job.request, job.session
        assert request is not None
        text = Text(session, request, job.streams[session], self.sampler)
        head = await self._prefill(job, request, text.stream)
        work: Callable[[], Coroutine[Wish, None, None]]
        if isinstance(self.guidance, Search):
            work = await self._search(job, request, text, self.guidance)
        elif self.guidance is not None:
            work = await self._guided(job, request, text, self.guidance)
        else:
            await self._feed_last(text)
            work = partial(plain, text)
        job.last_piece = job.last_piece or (lambda: text.pieces.finish(text.ended or "length"))
        rewards = text.stream.rewards[np.newaxis]
        job.handle.prompt_rewards = np.concatenate([head, rewards]) if request.prompt_rewards else rewards
        await Told([])
        await work()

    async def _prefill(self, job: Job, request: Request, stream: Stream) -> Float32:
        """All of the prompt but its last token; the rewards of these, if they are asked for."""
        pool, head = job.session.streams, request.prompt[:-1]
        if request.prompt_logprobs is not None:
            job.handle.prompt_logprobs.clear()  # it may have been put back
            all_at_once = request.prompt if self.guidance is None else head  # then the last one is fed here already
            visit = partial(_note_next, job.handle, request)
            return (await Prefill(pool, [(stream, all_at_once)], "logits", visit))[: len(head)]
        if request.prompt_rewards:
            return await Prefill(pool, [(stream, head)], "rewards")
        leader, count = self._leader(job)
        if leader is stream:
            await Prefill(pool, [(stream, head[len(stream.tokens) : count])])
        elif leader is not None:
            await Until(lambda: len(leader.tokens) >= count or leader not in pool.live)
            if not stream.tokens and leader in pool.live:
                pool.copy_beginning(leader, stream, count)
        return await Prefill(pool, [(stream, head[len(stream.tokens) :])])

    def _leader(self, job: Job) -> tuple[Stream | None, int]:
        """The first text of the call, if it is still under way, and how many tokens all prompts have in common."""
        requests = [other.request for other in self.group if other.request is not None]
        if len(requests) < 2 or isinstance(self.guidance, Search) or requests[0].context_shift:
            return None, 0
        leader = self.group[0].streams.get(job.session)
        return leader, common_beginning([request.prompt[:-1] for request in requests])

    async def _feed_last(self, text: Text, *beside: tuple[Stream, Int32]) -> None:
        """The prompt's last token, whose logits and rewards are wanted."""
        if len(text.stream.tokens) == len(text.request.prompt):
            return
        if not await text.append(text.request.prompt[-1], *beside):
            raise ContextFullError(
                f"the KV cache of {text.session.context.n_ctx} tokens has no room for a prompt of "
                f"{len(text.request.prompt)}"
            )

    async def _guided(
        self, job: Job, request: Request, text: Text, policy: Policy
    ) -> Callable[[], Coroutine[Wish, None, None]]:
        session = job.session
        readers = []
        for auxiliary in policy.auxiliary_streams():
            reader = self._auxiliary(job, auxiliary)
            await reader.begin(auxiliary.prompt(list(request.prompt)) if auxiliary.prompt else request.prompt)
            readers.append(reader)
        models: dict[tuple[str, ...], RewardReader | None] = {}
        for name, other in request.reward_models.items():
            models[labels_by_name(name, other)] = RewardReader(name, other, job.streams[other])
        guide = Guide(policy, _own_labels(session, request), models, readers)
        for model in guide.reward_readers:
            await model.begin(request.prompt)
            await model.read()
        beside = [(reader.stream, reader.take_unread()) for reader in readers if reader.same_context]
        await self._feed_last(text, *beside)
        return partial(guided, text, guide)

    def _auxiliary(self, job: Job, auxiliary: AuxiliaryStream) -> AuxiliaryReader:
        other = auxiliary.model.session if auxiliary.model is not None else job.session
        same = other is job.session
        stream = job.session.streams.branch(job.streams[job.session].lease) if same else job.streams[other]
        return AuxiliaryReader(auxiliary.name, other, stream, same_context=same)

    async def _search(
        self, job: Job, request: Request, text: Text, search: Search
    ) -> Callable[[], Coroutine[Wish, None, None]]:
        await self._feed_last(text)
        readers = [BranchReader(name, other) for name, other in request.reward_models.items()]
        for reader in readers:
            await reader.begin(text, job.streams[reader.session])
        seed = seed_of(job.session, request.sampling)
        work = Workspace(text, _own_labels(job.session, request), readers, seed)
        job.last_piece = work.finish
        return partial(search.run, work)


def _note_next(handle: Handle, request: Request, position: int, logits: Float32) -> None:
    """How likely the prompt's next token was; the first one follows nothing."""
    if position + 1 == len(request.prompt):
        return
    top = Top(logits, request.prompt_logprobs or 0)
    chosen = top.chosen(np.asarray([request.prompt[position + 1]], np.int32))
    handle.prompt_logprobs.append(top.logprobs_for(float(chosen[0])))
