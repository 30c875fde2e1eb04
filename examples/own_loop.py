"""GRPO as a loop of one's own: what is sampled, what counts as better, what is minimised, and when, all in this file.

    .venv/bin/python examples/own_loop.py RECIPE [--set model=FOLDER …]

The recipe names model, environment, rewards, engine and learner; its [rft] table gives steps and sizes. burnish starts what that needs and
hands over five primitives: rollouts, forward_backward, step, sync and evaluate. `burnish run` drives the same ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from burnish.envs.types import EpisodeGroup
from burnish.session import Session, session
from burnish.trainer.batch import GroupBatch, TokenBatch
from burnish.trainer.objectives.losses import LossInputs, LossOutputs
from burnish.trainer.objectives.objective import Objective

CLIP = 0.2


def worth_learning_from(group: EpisodeGroup) -> bool:
    """Whether some members got more than others. Members that failed (a tool that broke, say) have no reward, and do not count."""
    rewards = [episode.reward.total for episode in group.rewarded if episode.reward is not None]
    return len(rewards) >= 2 and max(rewards) > min(rewards)


def advantages(batch: GroupBatch) -> np.ndarray:
    """Each episode's reward less the mean of its group, at every token that it sampled: float32 `[N]`."""
    return batch.per_token(batch.rewards - batch.group_means(batch.rewards))


def clipped_policy_gradient(inputs: LossInputs) -> LossOutputs:
    """-min(r A, clip(r) A) per token, r being the ratio between the policy now and when it sampled."""
    ratio = torch.exp(inputs.logprobs - inputs.sampler_logprobs)
    surrogate = torch.minimum(ratio * inputs.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * inputs.advantages)
    return LossOutputs({"policy": -surrogate}, {"ratio": ratio.detach()})


def collect(run: Session, tasks: int) -> list[EpisodeGroup]:
    """Groups that teach something, of so many tasks and of as many more in the place of those that do not."""
    groups = run.rollouts(tasks)
    kept = [group for group in groups if worth_learning_from(group)]
    if len(kept) < tasks:
        kept += [group for group in run.rollouts(tasks - len(kept)) if worth_learning_from(group)]
    return kept


def batch_of(groups: Sequence[EpisodeGroup]) -> TokenBatch:
    """What the learner takes."""
    batch = GroupBatch(tuple(groups))
    return batch.train(advantages(batch))


def train(run: Session, steps: int, tasks: int) -> None:
    """`steps` updates on the groups of `tasks` tasks each."""
    objective = Objective(clipped_policy_gradient, aggregation="token", temperature=run.recipe.rollout.temperature)
    for step in range(1, steps + 1):
        started = time.monotonic()
        groups = collect(run, tasks)
        if not groups:
            print(f"step {step}: every group got equal rewards, so there is nothing to learn from")
            continue
        measured = run.forward_backward(batch_of(groups), objective)
        stepped = run.step(scale=min(1.0, len(groups) / tasks))  # fewer groups than wanted make a smaller step
        run.sync()  # raises unless every engine proves that it computes with the new weights
        rewards = [episode.reward.total for group in groups for episode in group.rewarded if episode.reward is not None]
        print(
            f"step {step}: reward {np.mean(rewards):.3f} of {len(rewards)} episodes, loss {measured.terms['loss']:.4f}, "
            f"gradient {stepped['grad_norm']:.2f}, {time.monotonic() - started:.1f} s",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `burnish run`; may be repeated")
    parser.add_argument("--save", type=Path, help="write the trained model to this new folder")
    options = parser.parse_args(arguments)
    with session(options.recipe, options.set) as run:
        table = run.recipe.rft
        if table is None:
            raise SystemExit(f"{options.recipe} has no [rft] table, which gives steps and sizes")
        before, _ = run.evaluate()
        train(run, table.steps, table.groups_per_step)
        after, _ = run.evaluate()
        print(f"success on {len(before.task_success)} held-out tasks: {before.success:.1%} before, {after.success:.1%} after")
        if options.save:
            run.save_model(options.save, run.recipe.name)


if __name__ == "__main__":
    main()
