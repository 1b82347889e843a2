"""A guidance policy of your own, in a dozen lines: guide only while the reward of the text is below a target.

ARGS feeds all candidates for every token, also where the text is as good as it should be. `BelowTarget` looks at the
reward of the text so far, which every step knows for free, and leaves steps that need no help to plain decoding. On the
demo model it reaches the rewards of ARGS with a fraction of its forward tokens:

    python examples/own_policy.py

For your own model give `-m` and `--otter`, and a target in the unit of its reward: a calibrated one has mean 0 and
standard deviation 1 over unfinished responses, so 0.5 is half a deviation better than usual. docs/guidance.md says
what a policy can look at, and otter_gguf/guidance/base.py what else it may override.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from otter_gguf import ARGS, Candidates, Otter, Policy
from otter_gguf.demo import Judge, demo_files
from otter_gguf.guidance.base import State
from otter_gguf.steps import Float32

N_PROMPTS, MAX_TOKENS = 12, 40


@dataclass(frozen=True)
class BelowTarget(Policy):
    """Scores as ARGS has them, logit + weight * reward, while the reward of the text is below ``target``."""

    target: float = 0.5
    """In units of the reward."""
    weight: float = 2.0
    """Logits per unit of reward."""
    n_candidates: int = 10
    """Tokens considered in a guided step."""

    def applies_to(self, state: State) -> bool:
        """Only a step of a text below the target; any other costs as much as a plain one."""
        return bool(state.rewards[0] < self.target)

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) what the choice is made by; ``candidates.reward()`` is the only reward of each, or takes a label."""
        scores: Float32 = candidates.logits + np.float32(self.weight) * candidates.reward()
        return scores


@dataclass(frozen=True)
class Summary:
    """Means over the texts of one policy."""

    reward: float
    judge: float
    """The demo's independent judge: -1 unkind, +1 kind. It reads words, and means nothing for other models."""
    guided: float
    """Share of steps that the policy guided."""
    cost: float
    """Forward tokens for each generated token."""


def summarize(llm: Otter, policy: Policy | None, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> Summary:
    """Continue all prompts greedily."""
    judge, fed = Judge.load(), -llm.context.timing()["tokens"]
    rewards, verdicts, guided = [], [], []
    for prompt in prompts:
        out = llm.create_completion(prompt, max_tokens=max_tokens, temperature=0, guidance=policy, step_records=True)
        choice, usage = out["choices"][0], out["usage"]
        assert choice["rewards"] is not None
        assert usage is not None
        rewards.append(choice["rewards"]["reward"])
        verdicts.append(judge.score(choice["text"]))
        guided += [bool(step["guided"]) for step in choice["steps"]]
        fed -= usage["prompt_tokens"]
    fed += llm.context.timing()["tokens"]
    means = statistics.fmean(rewards), statistics.fmean(verdicts), statistics.fmean(guided)
    return Summary(*means, cost=fed / len(guided))


def main(arguments: Sequence[str] | None = None) -> None:
    demo = demo_files()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default=demo.base, help="GGUF of the base (default: the demo model)")
    parser.add_argument("--otter", default=demo.sidecar, help="its sidecar")
    parser.add_argument("-p", "--prompt", action="append", help="text to continue (may be repeated)")
    parser.add_argument("--target", type=float, default=0.5, help="reward below which steps are guided (default: 0.5)")
    parser.add_argument("-t", "--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(arguments)
    policies = {"plain": None, "ARGS": ARGS(weight=2.0), "BelowTarget": BelowTarget(args.target)}
    with Otter(args.model, otter=args.otter, n_ctx=512, n_threads=args.threads) as llm:
        for name, policy in policies.items():
            found = summarize(llm, policy, args.prompt or demo.load_prompts()[:N_PROMPTS])
            print(
                f"{name:12} reward {found.reward:+.2f}  judge {found.judge:+.2f}  guided steps {found.guided:4.0%}  "
                f"{found.cost:4.1f} forward tokens per generated token"
            )


if __name__ == "__main__":
    main()
