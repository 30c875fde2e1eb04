"""What a run does when a guard raises an alarm: a row, a line, and the end of the run or the way back to its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from burnish.inspector.runs import read_metrics, series_rows
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.records import AlarmRow, RollBackRow
from burnish.run.display import say
from burnish.run.folder import RunFolder
from burnish.trainer.watch.guards import Alarm, Watch


class GuardStop(RuntimeError):
    """A guard that the recipe answers with "stop", or with a way back that was gone too often, ended the run."""


class RollBack(Exception):
    """Guards that the recipe answers with "roll_back": the run has to go on from its last checkpoint. alarms: of one step, at least one."""

    def __init__(self, phase: str, alarms: Sequence[Alarm]) -> None:
        super().__init__(alarms[0].line)
        self.phase, self.alarms = phase, alarms

    def row(self, position: int) -> RollBackRow:
        """That the run goes back, as it is stored. position: in the stream of tasks, from which it goes on."""
        return RollBackRow(
            phase=self.phase, step=self.alarms[0].step, guards=tuple(alarm.guard for alarm in self.alarms), position=position
        )


def watch_over(recipe: ResolvedRun, folder: RunFolder, phase: str, steps: int, remembered: Mapping[str, Any] | None) -> Watch:
    """The guards over a phase of reinforcement from a step on. remembered: what a checkpoint kept of them, None at the beginning."""
    watch = Watch(recipe.guards, recipe.success, like_training=recipe.evaluation.mode_between == "sampled")
    if steps and remembered is not None:
        watch.restore(remembered, series_rows(read_metrics(folder.metrics_file), phase, steps))
    return watch


def heed(folder: RunFolder, console: Console, phase: str, alarms: Sequence[Alarm]) -> None:
    """Store and say every alarm of a step. Raises GuardStop, or RollBack, when one of them asks for it; to stop is the stronger."""
    for alarm in alarms:
        folder.log_alarm(row_of(phase, alarm))
        say(console, alarm.line)
    for alarm in alarms:
        if alarm.action == "stop":
            raise GuardStop(f'{alarm.line}; guards.{alarm.guard} = "stop" ends the run')
    if back := [alarm for alarm in alarms if alarm.action == "roll_back"]:
        raise RollBack(phase, back)


def row_of(phase: str, alarm: Alarm) -> AlarmRow:
    """An alarm as it is stored."""
    return AlarmRow(phase=phase, step=alarm.step, guard=alarm.guard, action=alarm.action, text=alarm.text)
