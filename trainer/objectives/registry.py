"""Advantages and losses by name: what burnish brings, what a distribution lists under `burnish.objectives`, or a function of one's own.

    @advantage("my-team/centred-v1")
    def centred(batch: GroupBatch) -> np.ndarray:
        return batch.per_token(batch.rewards - batch.group_means(batch.rewards))

    @loss("my-team/reinforce-v1", level="token")
    def reinforce(inputs: LossInputs) -> LossOutputs:
        return LossOutputs({"policy": -inputs.advantages * inputs.logprobs})

A recipe names them in `[rft.objective]`, by id or as `module:function`. Torch is not imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from ...envs.callables import source_of, written
from ...envs.named import attributed, load_function
from ...envs.registry import Registry, check_id
from ...rewards.options import check_options, option_parameters
from .config import Aggregation

F = TypeVar("F", bound=Callable[..., Any])

Level = Literal["token", "sequence"]

BATCH, INPUTS = "batch: GroupBatch", "inputs: LossInputs"
"""How the first parameters of an advantage and of a loss read."""


@dataclass(frozen=True, slots=True)
class Advantage:
    """A registered advantage: `function(batch: GroupBatch, **options)` gives float `[N]`, a value per token of the batch."""

    id: str
    function: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Loss:
    """A registered loss: `function(inputs: LossInputs, **options) -> LossOutputs`.

    level: "token" when a token's loss depends on that token alone, so that slices can be computed one after the other in one pass;
    "sequence" when it depends on others, so that all tokens are scored first: right for every loss that looks no further than a token's
    group, for one more forward pass.
    aggregation: how it averages unless the recipe says otherwise. entropy: whether it needs the gradient of the entropies. reference:
    whether it needs the log-probabilities of the phase's reference.
    """

    id: str
    function: Callable[..., Any]
    level: Level = "sequence"
    aggregation: Aggregation = "token"
    entropy: bool = False
    reference: bool = False


OBJECTIVES: Registry[Advantage | Loss] = Registry("objective", "burnish.objectives")


def advantage(id: str) -> Callable[[F], F]:
    """Register a function as the advantage `id`; the function itself is unchanged. Parameters beyond the first are its options.

    Raises ValueError on a malformed id, or a signature without a first parameter.
    """
    check_id(id, "objective")

    def register(function: F) -> F:
        option_parameters(f"advantage {id!r}", function, BATCH)
        OBJECTIVES.register(id, Advantage(id, function), _where(function))
        return function

    return register


def loss(
    id: str, *, level: Level = "sequence", aggregation: Aggregation = "token", entropy: bool = False, reference: bool = False
) -> Callable[[F], F]:
    """Register a function as the loss `id`; the function itself is unchanged. Parameters beyond the first are its options; see `Loss`.

    Raises ValueError on a malformed id, a signature without a first parameter, or an aggregation that needs a number of the recipe.
    """
    check_id(id, "objective")
    if aggregation == "constant":
        raise ValueError(f'loss {id!r}: aggregation "constant" needs constant_tokens, which a recipe gives; declare "token" or "sequence"')

    def register(function: F) -> F:
        option_parameters(f"loss {id!r}", function, INPUTS)
        OBJECTIVES.register(id, Loss(id, function, level, aggregation, entropy, reference), _where(function))
        return function

    return register


def find_advantage(name: str, args: Mapping[str, Any], field: str = "rft.objective.advantage") -> Callable[[Any], Any]:
    """The advantage `name` with its options set: a function of a `GroupBatch`. Raises ValueError when it is unknown or an option unfit."""
    found = _find(name, field)
    if isinstance(found, Loss):
        raise ValueError(f"{field}: {name!r} is a loss, not an advantage")
    function = found.function if isinstance(found, Advantage) else found
    what = f"advantage {name!r}"
    return _bound(what, function, check_options(what, function, BATCH, args))


def find_loss(loss: str | Loss, args: Mapping[str, Any], field: str = "rft.objective.loss") -> Loss:
    """The loss, by its name or as `loss_of` gave it, its function taking nothing but `LossInputs`.

    Raises ValueError when it is unknown or an option unfit.
    """
    name = loss if isinstance(loss, str) else loss.id
    found = _find(loss, field) if isinstance(loss, str) else loss
    if isinstance(found, Advantage):
        raise ValueError(f"{field}: {name!r} is an advantage, not a loss")
    given = found if isinstance(found, Loss) else Loss(name, found)
    what = f"loss {name!r}"
    options = check_options(what, given.function, INPUTS, args)
    return replace(given, function=_bound(what, given.function, options))


def loss_of(function: Callable[..., Any]) -> Loss:
    """A function, a partial of one, or an object with `__call__` as a loss: with what it was registered with, if it was.

    Raises ValueError when it is registered as an advantage.
    """
    found = _declared(function)
    if isinstance(found, Advantage):
        raise ValueError(f"{found.id!r} is an advantage, not a loss")
    return found or Loss(source_of(function), function)


def full_id(name: str) -> str:
    """`grpo` as burnish's own `burnish/grpo-v1`, anything else as it is. Example: `dr_grpo` gives `burnish/dr-grpo-v1`."""
    return f"burnish/{name.replace('_', '-')}-v1" if name.isidentifier() else name


def _find(name: str, field: str) -> Advantage | Loss | Callable[..., Any]:
    if ":" not in name:
        if full_id(name) not in [row.id for row in OBJECTIVES.list()]:
            raise ValueError(f"{field}: {name!r} is unknown; {_registered(name, field)}")
        found = OBJECTIVES.get(full_id(name))
        if not isinstance(found, Advantage | Loss):
            raise ValueError(f"{field}: {name!r} is no objective; decorate the function its entry point names with @advantage or @loss")
        return found
    function = load_function(name, field)
    return _declared(function) or function


def _registered(name: str, field: str) -> str:
    """The advantages, or the losses, that a recipe can name, those first that are written most alike; of what is installed by others it is
    not known which they are."""
    loaded = {row.id: OBJECTIVES.get(row.id) if row.id.startswith("burnish/") else OBJECTIVES.loaded(row.id) for row in OBJECTIVES.list()}
    other = Advantage if field.endswith("loss") else Loss
    known = [_short(id) for id, found in loaded.items() if not isinstance(found, other)]
    alike = sorted(known, key=lambda one: difflib.SequenceMatcher(None, one, name).ratio(), reverse=True)
    return f"registered are, the closest first: {', '.join(alike)}; one of your own: my_module:function, or my_file.py:function"


def _short(id: str) -> str:
    """How a recipe names one: the inverse of `full_id`."""
    own = id.startswith("burnish/")
    return id.removeprefix("burnish/").removesuffix("-v1").replace("-", "_") if own else id


def _declared(function: Callable[..., Any]) -> Advantage | Loss | None:
    """What a function was registered as; a partial of it is still that, with some options set."""
    loaded = [OBJECTIVES.loaded(listing.id) for listing in OBJECTIVES.list()]
    found = next((one for one in loaded if one is not None and one.function in (function, written(function))), None)
    return None if found is None else replace(found, function=function)


def _bound(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[Any], Any]:
    ours = str(getattr(written(function), "__module__", "")).startswith("burnish.")
    return (lambda first: function(first, **options)) if ours else partial(_called, what, function, options)


def _called(what: str, function: Callable[..., Any], options: Mapping[str, Any], first: Any) -> Any:
    """A user's function, `attributed`. At the top of a module: a learner that an objective is sent to finds its annotations here, those of
    a function within another are left behind when it is pickled."""
    with attributed(what):
        return function(first, **options)


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"
