"""Algorithms by their names: each is a set of values for the `[rft]` table, which the recipe's own values go before.

    [rft]
    algorithm = "gspo"                       # = minibatches 4, and [rft.objective] advantage "grpo", loss "gspo", …

`written_out` puts them into the table's data before it is checked, so the config shows them and reads back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo"]

MINIBATCHES = 4
"""Updates of a step for algorithms whose bounds act on what the earlier updates of the same step did."""
CLIPS = {"ppo_clip": ("clip_low", "clip_high"), "gspo": ("clip_low", "clip_high"), "cispo": ("clip_low", "clip_high")}
"""Losses of burnish whose ratio compares with the old policy, and the options that bound it."""


@dataclass(frozen=True)
class Preset:
    """What an algorithm's name stands for.

    advantage, loss: what makes it that algorithm, so a recipe may not name others. clips: options of the loss, where they can act. table,
    objective: further values of `[rft]` and `[rft.objective]`. kl: values of `[rft.objective]` once kl_coef is above 0.
    """

    advantage: str
    loss: str
    clips: Mapping[str, float] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    kl: Mapping[str, str] = field(default_factory=lambda: {"kl": "k3", "kl_in": "loss"})


IN_REWARD = {"kl": "k1", "kl_in": "reward"}

PRESETS: Mapping[Algorithm, Preset] = {
    "grpo": Preset("grpo", "ppo_clip", {"clip_low": 0.2, "clip_high": 0.2}, objective={"aggregation": "sequence"}),
    "dr_grpo": Preset("dr_grpo", "ppo_clip", {"clip_low": 0.2, "clip_high": 0.2}, objective={"aggregation": "constant"}),
    "dapo": Preset(
        "grpo",
        "ppo_clip",
        {"clip_low": 0.2, "clip_high": 0.28},
        {"minibatches": MINIBATCHES},
        {"aggregation": "token", "overlong": {"action": "penalty"}},
    ),
    "gspo": Preset(
        "grpo", "gspo", {"clip_low": 3e-4, "clip_high": 4e-4}, {"minibatches": MINIBATCHES}, objective={"aggregation": "sequence"}
    ),
    "cispo": Preset(  # no bound ends a gradient, so a step takes fewer updates: with four, one demo run of three fell to a constant
        "grpo", "cispo", {"clip_low": 1.0, "clip_high": 3.0}, {"minibatches": 2}, objective={"aggregation": "token"}
    ),
    "rloo": Preset("rloo", "importance", objective={"aggregation": "constant"}, kl=IN_REWARD),
    "reinforce_pp": Preset(
        "reinforce_pp",
        "ppo_clip",
        {"clip_low": 0.2, "clip_high": 0.2},
        {"minibatches": MINIBATCHES, "equal_groups": "keep"},
        {"aggregation": "token"},
        IN_REWARD,
    ),
    "ppo": Preset(
        "gae",
        "ppo_clip",
        {"clip_low": 0.2, "clip_high": 0.2},
        {"minibatches": MINIBATCHES, "equal_groups": "keep", "critic": {}},
        {"aggregation": "token"},
        IN_REWARD,
    ),
}
"""By name; `docs/algorithms.md` says where each comes from, and what differs from there."""

Data = dict[str, Any]


def written_out(data: Data) -> Data:
    """The data of an `[rft]` table with its algorithm's values, and what follows from the number of updates. Does not change `data`.

    What is malformed stays for the table to refuse. Raises ValueError when the algorithm's name contradicts another value.
    """
    given = data.get("objective", {})
    if not isinstance(given, BaseModel | dict):
        return data
    objective: Data = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else dict(given)
    out = {**data}
    preset = PRESETS.get(data["algorithm"]) if isinstance(data.get("algorithm"), str) else None
    if preset is not None:
        _agrees(data["algorithm"], preset, objective)
        groups = data.get("groups_per_step", MINIBATCHES)
        table = {**preset.table}
        if "minibatches" in table and isinstance(groups, int):
            table["minibatches"] = max(1, min(table["minibatches"], groups))
        out = {**table, **data}
        kl = preset.kl if _positive(objective.get("kl_coef")) else {}
        objective = _over({"advantage": preset.advantage, "loss": preset.loss, **preset.objective, **kl}, objective)
    if objective.get("correction") is None:
        objective["correction"] = "truncate" if updates(out) > 1 else "none"
    if preset is not None and bounds_act(updates(out), objective["correction"]):
        objective = _over({"loss_args": dict(preset.clips)}, objective)
    return {**out, "objective": objective}


def updates(table: Data) -> int:
    """Optimizer updates of one step."""
    numbers = [table.get("minibatches", 1), table.get("epochs", 1)]
    return numbers[0] * numbers[1] if all(isinstance(number, int) for number in numbers) else 1


def bounds_act(updates: int, correction: str) -> bool:
    """Whether bounds of pi / pi_old can matter: the old policy is the sampler, or an earlier state of this step.

    With one update and a correction, the old policy is the one that is trained, and the ratio is exactly 1.
    """
    return updates > 1 or correction == "none"


def _agrees(name: str, preset: Preset, objective: Data) -> None:
    for key in ("advantage", "loss"):
        own, asked = getattr(preset, key), objective.get(key)
        if asked is not None and plain_name(asked) != own:
            raise ValueError(f'objective.{key} = "{asked}" contradicts algorithm = "{name}", whose {key} is "{own}"; remove one of them')


def plain_name(name: Any) -> Any:
    """What burnish brings by its short name. Example: `plain_name("burnish/ppo-clip-v1")` is "ppo_clip"."""
    brought = re.fullmatch(r"burnish/([a-z0-9-]+)-v1", name) if isinstance(name, str) else None
    return brought[1].replace("-", "_") if brought else name


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _over(preset: Data, given: Data) -> Data:
    """What is given, over the preset; of tables each value for itself."""
    merged = {**preset}
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if value is not None:
            merged[key] = {**merged[key], **value} if both else value
    return merged
