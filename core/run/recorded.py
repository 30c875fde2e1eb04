"""What plays a run's episodes again: its environments, put together as its recipe says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from burnish.cluster import check_played, services_of
from burnish.envs.contract import ENVS
from burnish.envs.named import import_module
from burnish.envs.registry import load_plugin
from burnish.inspector.replay import Player
from burnish.recipe.recorded import recorded_setup
from burnish.rewards.calling.threads import Daemons
from burnish.rpc.address import service_references, with_addresses


@contextmanager
def players_of(folder: Path, plugins: Sequence[Path] = (), outward: bool = False, trust: bool = False) -> Iterator[Mapping[str, Player]]:
    """The players by the name of their environment in a blend, "" for the recipe's own.

    plugins: files to load beside those that the recipe names. outward: whether the folder may name addresses and secrets. trust: whether
    it may name code that nobody registered. Only services that the environments use are started. Raises ValueError when an environment is
    unknown here, code that the recipe names is missing or lies in the folder, or it names code, an address or a secret that it may not,
    or a service does not answer.
    """
    run = recorded_setup(folder, outward, trust, plugins)
    for plugin in (*map(str, plugins), *run.plugins):
        load_plugin(plugin)
    if run.environment.module:
        import_module(run.environment.module, "environment")
    made = {"": (run.environment.id, run.environment.args), **{one.name: (one.id, one.args) for one in run.blended}}
    for id, _ in made.values():
        ENVS.get(id)
    used = {name for _, args in made.values() for name in service_references(args)}
    services = {name: service for name, service in run.services.items() if name in used}
    threads = Daemons("replay")
    with tempfile.TemporaryDirectory(prefix="burnish-replay-") as logs, services_of(services, Path(logs)) as addresses:
        check_played([(id, args, ()) for id, args in made.values()], addresses)
        yield {name: Player(id, with_addresses(args, addresses), threads, run.step_timeout_s) for name, (id, args) in made.items()}
