"""What a recipe says about rewards: one entry per scorer, in-process or behind gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..envs.named import names_code
from ..envs.registry import ID_PATTERN
from ..rpc.address import SERVICE, is_address
from .terms import Normalize, Term


class RewardConfig(BaseModel):
    """One scorer of the rubric: a reward plug-in (`use`) or a remote verifier (`verifier`).

    use: id of a reward plug-in, with its options in `args`. verifier: `service:NAME` of the recipe, or the `host:port` of one that runs.
    verifier_id: which verifier of a server that has several ("my-team/right-v1"). weight: what its value counts in the total that trains;
    0 only reports it. name: its part of the reward, by default the middle of the id or the service's name; further parts read `name.part`.
    args: options of the plug-in. deadline_s: seconds one call of a verifier may take (a plug-in declares its own limit in `@reward`).

    Between a value and the total there are, in this order, clip, normalize, weight, the sum and gate. What is recorded stays as the scorer
    gave it. clip: the value is kept within [low, high]. normalize: "minmax" maps `range` onto [0, 1], "group" standardises within the
    attempts at one task. range: [low, high] of the value, for "minmax". gate: the value, as the scorer gave it, below which the total is at
    most `cap`. cap: of a gate, 0 when left out.

    Example: `[[rewards]]` with `verifier = "service:verdicts"`, `name = "verdict"`, `weight = 1.0`, `deadline_s = 5`, `gate = 0.5`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    use: str | None = None
    verifier: str | None = None
    verifier_id: str | None = None
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_-]+$")
    weight: float = 1.0
    clip: tuple[float, float] | None = None
    normalize: Normalize | None = None
    range: tuple[float, float] | None = None
    gate: float | None = None
    cap: float | None = None
    args: dict[str, Any] = {}
    deadline_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_scorer(self) -> RewardConfig:
        if (self.use is None) == (self.verifier is None):
            raise ValueError('needs exactly one of use = "namespace/name-v1" (a plug-in) and verifier = "service:NAME" or "host:port"')
        if self.verifier is not None:
            _check_reachable(self.verifier)
        if self.use is not None and not ID_PATTERN.match(self.use):
            raise ValueError(f"use = {self.use!r} must read namespace/name-vN, for example 'my-team/reward-v1'")
        if self.verifier_id is not None and self.verifier is None:
            raise ValueError("verifier_id has no effect on a reward plug-in (use = …)")
        if self.verifier_id is not None and not ID_PATTERN.match(self.verifier_id):
            raise ValueError(f"verifier_id = {self.verifier_id!r} must read namespace/name-vN, for example 'my-team/right-v1'")
        if not self.name:  # frozen for everyone else; a default that follows from another field is filled in here
            object.__setattr__(self, "name", default_name(self.use, self.verifier_id, self.verifier))
        if not self.name:
            raise ValueError('needs name = "…", the part of the reward it gives')
        if self.name in ("env", "total"):
            raise ValueError(
                f"the name {self.name!r} is taken: 'env' is the environment's reward, 'total' the weighted sum; choose another"
            )
        if self.verifier is not None and self.args:
            raise ValueError("args has no effect on a verifier; options belong to a reward plug-in (use = …)")
        if self.use is not None and self.deadline_s is not None:
            raise ValueError("deadline_s has no effect on a reward plug-in, which declares its limit as @reward(…, timeout_s=…)")
        _ = self.term  # raises when its parts contradict each other
        return self

    @property
    def term(self) -> Term:
        """How its value counts in the total."""
        return Term(self.weight, self.clip, self.normalize, self.range, self.gate, self.cap)


def _check_reachable(verifier: str) -> None:
    """Raise ValueError where a verifier is named by its code or its id, which nobody could call, instead of an address."""
    code, id = names_code(verifier.partition("?")[0]), ID_PATTERN.match(verifier)
    if verifier.startswith(("service:", "ray:")) or not (code or id) or is_address(verifier):  # a host may end in .py, as Paraguay's do
        return
    target = "my_file.py:function" if id else verifier
    of_reward = "; a reward of that id is named by use" if id else ""
    raise ValueError(
        f'verifier = {verifier!r} is no address, and a verifier runs as a service: services.NAME.verifier = "{target}" with '
        f'verifier = "service:NAME" in a recipe, or `burnish serve-verifier {verifier}`, whose host:port it is then{of_reward}'
    )


def declared_sizes(rewards: Iterable[RewardConfig], env_weight: float, success: str) -> dict[str, float]:
    """How large a part is in the total, of the parts whose values are known to be of about the size of what they lie in: the success, which
    lies in [0, 1], and what is mapped from a range no wider. A wider range, or a clip, says nothing of how large the values in it are.

    Example: one reward "verdict" of weight 0.5, which is the success: `{"verdict": 0.5}`.
    """
    sizes = {"env": abs(env_weight)} if success == "env" else {}
    for one in rewards:
        if (one.range is not None and one.range[1] - one.range[0] <= 1) or (one.name == success and one.normalize is None):
            sizes[one.name] = abs(one.weight)
    return sizes


def default_name(use: str | None, verifier_id: str | None, verifier: str | None) -> str:
    """A part is called after the middle of the id of its plug-in or verifier, or else after the service; "" where none of them is."""
    if id := use or verifier_id:
        match = ID_PATTERN.match(id)
        return match["name"].replace(".", "-") if match else ""
    verifier = verifier or ""
    return verifier.removeprefix(SERVICE) if verifier.startswith(SERVICE) else ""
