"""What a recipe says about waiting: every wait of a run has an end, and names what it waited for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LimitsConfig(BaseModel):
    """The `[limits]` table: seconds that a run waits, before it says for what, and how often it starts an engine or the learner anew. A run
    may resume with others.

    check_s: until a service that the recipe names answers, before the run starts. stall_s: in which no call of an engine, an environment or
    a reward ends anywhere, in training and in evaluation, until the run stops. answer_s: until an engine's process answers one call; one
    that does not is replaced. sync_s: until an engine has taken over new weights, beside what its answers take where those end first
    (`engine.on_new_weights`). restart_s: until the process of an engine that died is back. restarts: how often one engine, or the learner,
    may be started anew within restart_window_s; once more ends the run. restart_window_s: seconds after which a restart no longer counts.
    place_s: until the cluster has room for the learners, and then for the engines. learner_s: until the learner answers one call, its start
    included; one that does not, or that dies, is started once more from the last checkpoint, as long as the run gets further each time.
    rehearse_s: until the rehearsal has imported what the recipe names; its episode has its own time beside. cancel_s: until an engine has
    ended what it is told to give up, beside what its environments take to close, and until it is closed. follow_s: until the other learners
    answer once one of several has failed; then all are ended. kill_s: until the nodes have ended the processes of a learner that another
    takes the place of. tracker_s: until a tracker has started, and at the end of the run until it has taken what it was handed last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    check_s: float = Field(default=10.0, gt=0)
    stall_s: float = Field(default=600.0, gt=0)
    answer_s: float = Field(default=60.0, gt=0)
    sync_s: float = Field(default=600.0, gt=0)
    restart_s: float = Field(default=300.0, gt=0)
    restarts: int = Field(default=10, ge=0)
    restart_window_s: float = Field(default=3600.0, gt=0)
    place_s: float = Field(default=600.0, gt=0)
    learner_s: float = Field(default=3600.0, gt=0)
    rehearse_s: float = Field(default=600.0, gt=0)
    cancel_s: float = Field(default=60.0, gt=0)
    follow_s: float = Field(default=60.0, gt=0)
    kill_s: float = Field(default=60.0, gt=0)
    tracker_s: float = Field(default=60.0, gt=0)
