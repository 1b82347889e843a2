"""Decode the same prompts plainly, by ARGS and with a vocabulary head: texts, rewards and cost side by side.

ARGS (arXiv 2402.01694) feeds ten candidates in every step and reads the reward of each; a vocabulary head scores all
next tokens in the pass that is made anyway. So they differ tenfold in forward tokens per generated token (the step
that ends a text is counted, too):

    python examples/guided_decoding.py
    python examples/guided_decoding.py -m base.Q4_K_M.gguf --otter harmless.otter.gguf -p "How do I learn to swim?"

A sidecar without a vocabulary head leaves out the third way; docs/vocabulary-head.md says how to train one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from otter_gguf import ARGS, Otter, Policy, Vocabulary
from otter_gguf.demo import demo_files

PROMPTS = (
    "Once there was a young rabbit named Leo. One windy afternoon, Leo was at the forest. "
    '"I lost my way," said Ivy the hedgehog. It was getting dark.',
    "Once there was a young goat named Zoe. After lunch, Zoe ran to the playroom. "
    "A big wave came, and the castle that Ravi the rabbit made was gone.",
)


@dataclass(frozen=True)
class Result:
    """One continuation, and what it cost."""

    way: str
    text: str
    reward: float
    """Reward of prompt and text."""
    cost: float
    """Forward tokens for each generated token."""


def ways(llm: Otter, weight: float) -> dict[str, Policy | None]:
    """The ways of decoding that this model has the heads for."""
    found: dict[str, Policy | None] = {"plain": None, "ARGS": ARGS(weight)}
    return {**found, "vocabulary": Vocabulary(weight)} if llm.vocabulary_heads else found


def complete(llm: Otter, way: str, policy: Policy | None, prompt: str, max_tokens: int) -> Result:
    """Continue a prompt greedily."""
    before = llm.context.timing()["tokens"]
    out = llm.create_completion(prompt, max_tokens=max_tokens, temperature=0, guidance=policy)
    fed = llm.context.timing()["tokens"] - before
    choice, usage = out["choices"][0], out["usage"]
    assert choice["rewards"] is not None
    assert usage is not None
    cost = (fed - usage["prompt_tokens"]) / max(1, usage["completion_tokens"])
    return Result(way, choice["text"], choice["rewards"]["reward"], cost)


def compare(llm: Otter, prompts: Sequence[str], weight: float, max_tokens: int) -> Iterator[Result]:
    """Every prompt in every way."""
    for prompt in prompts:
        for way, policy in ways(llm, weight).items():
            yield complete(llm, way, policy, prompt, max_tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    demo = demo_files()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default=demo.base, help="GGUF of the base (default: the demo model)")
    parser.add_argument("--otter", default=demo.sidecar, help="its sidecar")
    parser.add_argument("-p", "--prompt", action="append", help="text to continue (may be repeated)")
    parser.add_argument("-w", "--weight", type=float, default=2.0, help="logits for each unit of reward (default: 2)")
    parser.add_argument("-n", "--predict", type=int, default=56, help="tokens at most (default: 56)")
    parser.add_argument("-t", "--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(arguments)
    with Otter(args.model, otter=args.otter, n_ctx=512, n_threads=args.threads) as llm:
        for result in compare(llm, args.prompt or PROMPTS, args.weight, args.predict):
            print(f"{result.way}: reward {result.reward:+.2f}, {result.cost:.1f} forward tokens per generated token")
            print(f"   {result.text.strip()}")


if __name__ == "__main__":
    main()
