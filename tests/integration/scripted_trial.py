"""A trial of `burnish tune` over a scripted engine and without Ray. One whose learning rate is too small to learn stands still after its
fourth update, so that it is under way when it is pruned, whatever the machine does. One whose rate is too large fails.

    python -m tests.integration.scripted_trial PARENT_PID run RECIPE …
"""

from __future__ import annotations

import time
from typing import Any

from tests.integration.scripted_run import LocalLearner, prepare

from burnish.cli.trial import main

STANDS_STILL_S = 250.0
TOO_SMALL, TOO_LARGE = 1e-8, 0.5


def step(learner: LocalLearner, *args: Any, **kwargs: Any) -> dict[str, float]:
    if learner.optimizer_config.lr > TOO_LARGE:
        raise RuntimeError("the rate is too large")
    if learner.version == 4 and learner.optimizer_config.lr < TOO_SMALL:
        time.sleep(STANDS_STILL_S)
    return real(learner, *args, **kwargs)


if __name__ == "__main__":
    prepare()
    real = LocalLearner.step
    setattr(LocalLearner, "step", step)  # noqa: B010  # in the place of an inherited method
    main()
