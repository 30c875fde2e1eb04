"""A row's prompt over a real socket: an environment behind gRPC need not ask anything more either."""

from __future__ import annotations

import pytest

from burnish.envs.contract import reset_env
from burnish.envs.failures import EpisodeFailure
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment
from burnish.envs.types import Message, Task
from burnish.rpc.background import background
from burnish.rpc.server import Server

pytestmark = pytest.mark.integration

WAIT_S = 120.0


def test_a_served_environment_may_leave_the_asking_to_the_row() -> None:
    server = Server([EnvironmentService([ServedEnvironment("burnish/SingleTurn-v0")])])
    try:
        env = RemoteEnv(background().run(server.start(), WAIT_S))
        task = Task("s1", 0, (Message("user", "2 + 2?"),))
        assert reset_env(env, "burnish/Remote-v0", task)[0] == ()
        assert env.step("4")[1:4] == (0.0, True, False)
        with pytest.raises(EpisodeFailure, match=r"give the recipe a table \[tasks\]"):
            reset_env(env, "burnish/Remote-v0", Task("s2", 0))
    finally:
        assert background().run(server.stop(), WAIT_S)
