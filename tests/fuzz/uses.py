"""What is done with a model that could be loaded: each use draws its input and calls the public API once or twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from otter_gguf.guidance.spec import parse
from otter_gguf.text_model import TextModel

from .inputs import constraint, messages, sampling_options, text

GUIDANCE = ["args:n_candidates=2,label=reward", "args:weight=-3,n_candidates=3,label=reward,center=true",
            "pargs:n_candidates=2,label=reward", "rad:n_candidates=2,label=reward", "best_of_n:n=2,label=reward",
            "gated:entropy=1+args:n_candidates=2,label=reward", "contrast:prefix=a", "vocabulary", "args",
            "threshold:limit=0,action=replace,n_candidates=2,label=reward", "cards:target=1,label=reward,max_tries=2",
            "threshold:limit=0,action=resample,tries=2,label=reward", "chunk_beam:label=reward",
            "speculative_rejection:n=3,label=reward,pause=2"]  # fmt: skip

VOCABULARY = ["vocabulary", "vocabulary:weight=-3", "args:n_candidates=2,label=reward"]
"""For models with a vocabulary head."""

Use = Callable[[TextModel, random.Random], object]
Named = tuple[str, Use]


def tokenize(llm: TextModel, rng: random.Random, most: int = 3000) -> None:
    """There and back."""
    given = text(rng, most)
    tokens = llm.tokenize(given, add_bos=rng.random() < 0.5, special=rng.random() < 0.5)
    llm.detokenize(tokens, special=rng.random() < 0.5)
    if rng.random() < 0.1:
        llm.tokenize(rng.randbytes(rng.choice([1, 10, 1000])))
        llm.detokenize([rng.choice([0, -1, llm.n_vocab, 2**31, 1]) for _ in range(3)])


def long_text(llm: TextModel, rng: random.Random) -> None:
    """As the user's prompt that it would be, or for its tokens alone."""
    if rng.random() < 0.7:
        tokenize(llm, rng, 300_000)
    else:
        llm.create_completion(text(rng, 300_000), max_tokens=1)


def prompt(llm: TextModel, rng: random.Random) -> list[int]:
    """Tokens that fit, mostly."""
    most = min(40, llm.n_ctx + 2) if rng.random() < 0.1 else max(1, llm.n_ctx - 5)
    return [rng.randrange(llm.n_vocab) for _ in range(rng.randint(1, min(most, 30)))]


def greedy(llm: TextModel, rng: random.Random) -> None:
    """The plainest of all."""
    llm.create_completion(prompt(llm, rng), max_tokens=2, temperature=0)


def bounded(llm: TextModel, options: dict[str, Any]) -> dict[str, Any]:
    """Options without a text that goes on for thousands of tokens, or for ever: that takes its time, and is no hang."""
    if options.get("max_tokens") == -1 and (llm.n_ctx > 1024 or options.get("context_shift")):
        options["max_tokens"] = 1024
    return options


def sampled(llm: TextModel, rng: random.Random) -> None:
    """With options, of which half are none."""
    llm.create_completion(prompt(llm, rng), **bounded(llm, {"max_tokens": 3, **sampling_options(rng)}))


def streamed(llm: TextModel, rng: random.Random) -> None:
    """A few chunks, of a stream that may be left or closed."""
    options = sampling_options(rng) if rng.random() < 0.3 else {}
    stream: Any = llm.create_completion(prompt(llm, rng), stream=True, **bounded(llm, {"max_tokens": 5, **options}))
    list(islice(stream, rng.randint(0, 6)))
    if rng.random() < 0.3:
        stream.close()


def shifted(llm: TextModel, rng: random.Random) -> None:
    """Longer than the context."""
    tokens = prompt(llm, rng)
    n_keep = rng.choice([0, 1, min(4, max(0, llm.n_ctx - 2))])
    llm.create_completion(
        tokens, max_tokens=min(llm.n_ctx, 64) + 4, context_shift=True, n_keep=n_keep, cache_prompt=rng.random() < 0.3
    )


def batch(llm: TextModel, rng: random.Random) -> None:
    """Prompts side by side."""
    llm.create_completion([prompt(llm, rng) for _ in range(rng.randint(1, 4))], max_tokens=2)


def score(llm: TextModel, rng: random.Random) -> None:
    """Rewards of a given text."""
    llm.score(text(rng, 30), text(rng, 30)) if rng.random() < 0.5 else llm.score(prompt(llm, rng))


def guided(llm: TextModel, rng: random.Random) -> None:
    """By a rule."""
    options: dict[str, Any] = {"context_shift": True, "max_tokens": 30} if rng.random() < 0.1 else {"max_tokens": 4}
    rule = rng.choice(GUIDANCE)
    if llm.insertion and rng.random() < 0.5 and any(head.kind == "vocabulary" for head in llm.insertion.heads):
        rule = rng.choice(VOCABULARY)
    llm.create_completion(prompt(llm, rng), guidance=parse(rule), **options)


def constrained(llm: TextModel, rng: random.Random) -> None:
    """By a grammar or a schema, at times in each branch of a search."""
    options: dict[str, Any] = {"top_k": 0} if rng.random() < 0.5 else {}
    if rng.random() < 0.1:
        options["guidance"] = parse(rng.choice(GUIDANCE))
    llm.create_completion(prompt(llm, rng), max_tokens=4, **options, **constraint(rng))


def plain_constrained(llm: TextModel, rng: random.Random) -> None:
    """By a constraint that has nothing odd, so that it acts."""
    choices: list[dict[str, Any]] = [
        {"json_schema": {"type": "string"}},
        {"json_schema": {}},
        {"grammar": "root ::= [a-z]+"},
        {"grammar": "root ::= .*"},
    ]
    top_k = rng.choice([0, 40])
    options: dict[str, Any] = {"guidance": parse("best_of_n:n=2,label=reward")} if rng.random() < 0.1 else {}
    llm.create_completion(
        prompt(llm, rng), max_tokens=8, top_k=top_k, temperature=2.0, **options, **rng.choice(choices)
    )


_FORMS: list[Any] = [
    {"type": "json_object"}, {"type": "text"}, {"type": "json_object", "schema": {"type": "array"}}, {}, [],
    {"type": 3},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}, {"type": "json_schema", "json_schema": 3},
]  # fmt: skip


def chat(llm: TextModel, rng: random.Random) -> None:
    """By the template, where there is one."""
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["response_format"] = rng.choice(_FORMS)
    if rng.random() < 0.3:
        options |= {"logprobs": True, "top_logprobs": rng.choice([0, 3, -1, 101, 2**70])}
    if rng.random() < 0.3:
        options |= sampling_options(rng)
        options.pop("echo", None), options.pop("prompt_rewards", None)
    llm.create_chat_completion(messages(rng), **bounded(llm, {"max_tokens": 2, **options}))


_PROCESSORS: list[Callable[[Any, Any], Any]] = [
    lambda tokens, logits: logits,
    lambda tokens, logits: logits.astype(np.float64).tolist(),
    lambda tokens, logits: np.full_like(logits, -np.inf),
    lambda tokens, logits: np.full_like(logits, np.nan),
    lambda tokens, logits: logits[:-1],
    lambda tokens, logits: logits[np.newaxis],
    lambda tokens, logits: None,
    lambda tokens, logits: "logits",
    lambda tokens, logits: [10**400] * len(logits),
]
_CRITERIA: list[Callable[[Any, Any], Any]] = [
    lambda tokens, logits: True,
    lambda tokens, logits: len(tokens) > 5,
    lambda tokens, logits: None,
    lambda tokens, logits: "yes",
]


def called_back(llm: TextModel, rng: random.Random) -> None:
    """With functions that see and change the logits."""
    options: dict[str, Any] = {"logits_processor": rng.choices(_PROCESSORS, k=rng.randint(0, 2))}
    if rng.random() < 0.5:
        options["stopping_criteria"] = rng.choice(_CRITERIA)
    guidance = parse(rng.choice(GUIDANCE)) if rng.random() < 0.3 else None
    llm.create_completion(prompt(llm, rng), max_tokens=3, guidance=guidance, **options)


def odd_prompt(llm: TextModel, rng: random.Random) -> None:
    """What is no prompt, or hardly."""
    most = llm.n_vocab
    prompts: list[Any] = [
        "", [], [""], [[]], ["", ""], [[1], "a", [2, 3]], None, 3, [None], b"a", bytearray(b"a"), memoryview(b"ab"),
        "\0",
        [2**31], [-1], [most], [most - 1], [1.5], [True], np.asarray([1, 2]), np.asarray([1.5]), np.asarray([[1, 2]]),
        (1, 2), [[1, [2]]], {"a": 1}, {1, 2}, object(), [1] * 3000, ["a"] * 300, [[10**30]], range(5), [10**5000],
    ]  # fmt: skip
    given = rng.choice(prompts)
    kind = rng.random()
    if kind < 0.6:
        llm.create_completion(given, max_tokens=2)
    elif kind < 0.8:
        llm.score(given, rng.choice(prompts) if rng.random() < 0.5 else None)
    else:
        list(islice(llm.generate(given), 3))


def state(llm: TextModel, rng: random.Random) -> None:
    """Saved and restored."""
    greedy(llm, rng)
    saved = llm.save_state()
    llm.load_state(saved)


_FAST: list[Named] = [
    ("tokenize", tokenize), ("greedy", greedy), ("sampled", sampled), ("streamed", streamed), ("batch", batch),
    ("score", score), ("constrained JSON", plain_constrained), ("state", state),
]  # fmt: skip
_SLOW: list[Named] = [
    *2 * [("shifted", shifted), ("guided", guided), ("constrained", constrained)],
    ("long text", long_text),
]
TEXT_USES: list[Named] = [
    ("long text", long_text), ("long text", long_text), ("tokenize", tokenize), ("constrained", constrained),
    ("constrained", constrained), ("constrained", constrained), ("sampled", sampled), ("sampled", sampled),
    ("streamed", streamed), ("shifted", shifted), ("guided", guided), ("score", score), ("callbacks", called_back),
    ("odd prompt", odd_prompt), ("batch", batch),
]  # fmt: skip


def file_uses(rng: random.Random, *, template: bool) -> list[Named]:
    """Of a file: some fast uses, at times a slow one."""
    slow = [rng.choice(_SLOW)] if rng.random() < 0.4 else []
    talk: list[Named] = [("chat", chat)] if template or rng.random() < 0.01 else []
    return [("tokenize", tokenize), *rng.sample(_FAST[1:], 2), *slow, *talk]
