"""Episodes token-in and token-out, failures typed and never rewarded, retries, deadlines, concurrency."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from tests.unit.chat_templates import family_tokenizer
from tests.unit.clock import patient_loop

from burnish.envs.contract import ENVS, register_env
from burnish.envs.failures import MAX_DETAIL, EpisodeFailure, Failure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import ToolSet, tool
from burnish.envs.types import Message, Reward, Task
from burnish.rewards.rubric import Rubric
from burnish.rewards.types import RewardInput, Score
from burnish.rollout.collect import collect
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts, Talk, _Episode, _Span, request_seed
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.episode import run_episode, run_with_retries
from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.store.transcripts import transcript_of
from burnish.trainer.batch import GroupBatch
from burnish.trainer.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

ENV_ID = "tests/Echo-v0"
TASK = Task("train-0", 7)


class Echo(gymnasium.Env[Any, str]):
    """Answers every text with itself and ends on "done"; reward 0.5 per step. Counts how many instances are open."""

    open_now = 0
    most_open = 0
    lock = threading.Lock()

    def __init__(
        self,
        fail_on: str = "",
        before: Callable[[], Any] = int,
        fail_closing: bool = False,
        says: str = "",
        tool: str = "",
        closed: Callable[[], Any] = int,
        reward: float = 0.5,
    ) -> None:
        self._closed, self._reward = closed, reward
        self.observation_space, self.action_space = MessagesSpace(), UnicodeText()
        self._fail_on, self._before, self._fail_closing, self._says, self._tool = fail_on, before, fail_closing, says, tool

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        with Echo.lock:
            Echo.open_now += 1
            Echo.most_open = max(Echo.most_open, Echo.open_now)
        return (Message("user", "say measure"),), {"tools": [{"function": {"name": "t", "description": self._tool}}]} if self._tool else {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._before()
        if self._fail_on and self._fail_on in action:
            raise RuntimeError("the gauge is broken")
        done = action == "done"
        info = {"reward_parts": {"echo": 0.5}, "metrics": {"length": float(len(action))}}
        return () if done else (Message("user", self._says or f"you said {action}"),), self._reward, done, False, info

    def close(self) -> None:
        with Echo.lock:
            Echo.open_now -= 1
        self._closed()
        if self._fail_closing:
            raise RuntimeError("the door is stuck")


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    if ENV_ID not in ENVS._loaded:
        register_env(ENV_ID, Echo)
    Echo.open_now = Echo.most_open = 0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["say measure", "you said measure", "done"] * 20, vocab_size=400, max_length=512)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def parts(tokenizer: Any, threads: ThreadPoolExecutor, engine: ScriptedEngine, rubric: Rubric | None = None, **kw: Any) -> EpisodeParts:
    env_args = kw.pop("env_args", {})
    limits = RolloutConfig(max_turns=4, max_tokens_per_turn=16, **kw)
    return EpisodeParts(ENV_ID, env_args, engine, TemplateRenderer(tokenizer), rubric or Rubric([], 1.0), limits, threads, seed=3)


def say(tokenizer: Any, *texts: str) -> list[Reply]:
    stop = tokenizer.eos_token_id
    return [Reply([*tokenizer.encode(text, add_special_tokens=False), stop]) for text in texts]


def awkward(tokenizer: Any, text: str) -> list[int]:
    """The text spelled byte by byte: a tokenization the tokenizer itself would never produce."""
    return [tokenizer.encode(character, add_special_tokens=False)[0] for character in text]


def test_what_trains_is_what_was_sampled_even_where_retokenising_would_differ(tokenizer, threads) -> None:
    stop = tokenizer.eos_token_id
    turns = [Reply([*awkward(tokenizer, "measure"), stop], [-0.1] * 7 + [-0.2]), Reply([*awkward(tokenizer, "done"), stop], [-0.3] * 5)]
    retokenised = tokenizer.encode(tokenizer.decode(turns[0].token_ids[:-1]), add_special_tokens=False)
    assert retokenised != list(turns[0].token_ids[:-1]), "the case must be one where re-tokenising differs"
    engine = ScriptedEngine(turns)
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))

    (trajectory,) = episode.trajectories
    sampled = [token for reply in turns for token in reply.token_ids]
    assert trajectory.token_ids[trajectory.trainable].tolist() == sampled
    assert trajectory.logprobs[trajectory.trainable].tolist() == pytest.approx([-0.1] * 7 + [-0.2] + [-0.3] * 5)
    # every request's context is the trajectory up to there: nothing was rendered again
    for request in engine.requests:
        assert trajectory.token_ids[: len(request.prompt_token_ids)].tolist() == request.prompt_token_ids
    # and the learner gets exactly these arrays
    from burnish.envs.types import EpisodeGroup

    other = replace(episode, sample=1, outcome=Reward(0.0))
    batch = GroupBatch((EpisodeGroup(TASK, (episode, other)),)).tokens
    assert batch.sequences[0].tolist() == trajectory.token_ids.tolist()
    assert batch.sampler_logprobs[: len(trajectory)].tolist() == trajectory.logprobs.tolist()
    assert batch.turn[: len(trajectory)][trajectory.trainable].tolist() == [0] * 8 + [1] * 5


def test_an_episode_sums_rewards_and_keeps_the_last_metrics(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure", "done"))
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))
    assert episode.outcome == Reward(1.0, {"env": 1.0, "env.echo": 1.0})
    assert (episode.metrics["turns"], episode.metrics["length"], episode.truncation) == (2.0, 4.0, None)
    assert [m.role for m in episode.messages] == ["user", "assistant", "user", "assistant"]


def test_running_out_of_turns_is_the_policys_doing_and_is_rewarded(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure"))
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))
    assert episode.truncation == "max_turns"
    assert episode.reward is not None and episode.reward.total == 2.0


def test_running_out_of_context_is_the_policys_doing_and_is_rewarded(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure"), max_context=40)
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))
    assert episode.truncation == "context"
    assert episode.reward is not None
    assert len(episode.trajectories[0]) <= 40
    assert episode.trajectories[0].trainable[-1], "an observation that nothing follows is left out"


class Rambling(ScriptedEngine):
    """Says what it is told, and after that goes on for `max_tokens`, of which the first few take ten minutes."""

    def __init__(self, replies: list[Reply]) -> None:
        super().__init__([*replies, [0] * 16], name="rambling")
        self.left = len(replies)

    async def generate(self, request: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            self.token_s = 0.05
            patient_loop().pass_time(600)
        return await super().generate(request)


@pytest.mark.parametrize("turns", [0, 2])
def test_running_out_of_time_to_think_is_the_policys_doing_and_is_rewarded_once(tokenizer, threads, turns: int) -> None:
    seen: list[RewardInput] = []

    class Watch:
        name = "watch"

        async def score(self, episode: RewardInput) -> Score:
            seen.append(episode)
            return Score(0.25)

    engine = Rambling(say(tokenizer, "measure", "measure")[:turns])
    shared = parts(tokenizer, threads, engine, Rubric([(Watch(), 1.0)], 1.0), episode_timeout_s=600, retries=2)
    episode = asyncio.run(run_with_retries(shared, TASK, 0, 1.0))
    assert (episode.truncation, episode.metrics["turns"]) == ("time", turns)
    assert episode.reward is not None and episode.reward.total == 0.5 * turns + 0.25
    assert len(seen) == 1 and seen[0].truncation == "time" and seen[0].answer is None
    assert len(episode.trajectories) == (1 if turns else 0), "where nothing was sampled there is nothing to train on"


HANGS, SLOW = 0.4, 0.02
"""Seconds without a token after which an engine hangs here, and that a token takes. Only what a loop waits passes on its clock, so the
machine has no part in which is longer."""


class Interrupted(ScriptedEngine):
    """Something happens to it in the middle of its second answer."""

    def __init__(self, replies: list[Reply], happens: Callable[[Interrupted], Any]) -> None:
        super().__init__(replies, name="rollout-1", timeout_s=HANGS)
        self.happens = happens

    async def generate(self, request: Any) -> Any:
        if len(self.requests) == 1:
            self.token_s = SLOW
            patient_loop().call_later(1.5 * SLOW, self.happens, self)
        return await super().generate(request)


def nothing(engine: ScriptedEngine) -> None:
    pass


def ten_minutes(engine: ScriptedEngine) -> None:
    patient_loop().pass_time(600)


def hang(engine: ScriptedEngine) -> None:
    engine.hang()


def hang_for_ten_minutes(engine: ScriptedEngine) -> None:
    hang(engine)
    ten_minutes(engine)


@pytest.mark.parametrize("happens", [hang, hang_for_ten_minutes], ids=["with time left", "whose time is over before"])
def test_an_engine_that_hangs_is_a_failure_that_names_it_and_never_a_reward(tokenizer, threads, happens: Callable[..., Any]) -> None:
    engine = Interrupted([*say(tokenizer, "measure"), Reply([0] * 16)], happens)
    shared = parts(tokenizer, threads, engine, episode_timeout_s=600, retries=2)
    episode = asyncio.run(run_with_retries(shared, TASK, 0, 1.0))
    assert episode.outcome == Failure(FailureKind.ENGINE_TIMEOUT, "rollout-1", "no token sampled for 0.4 s, for any request")
    assert (episode.trajectories, len(episode.turns)) == ((), 1)
    assert engine.cancelled == ["train-0/0/1"] and len(engine.requests) == 2, "it is replaced, and not asked again"


def test_an_engine_that_goes_on_slowly_takes_of_the_policys_time(tokenizer, threads) -> None:
    engine = Interrupted([*say(tokenizer, "measure"), Reply([0] * 16)], ten_minutes)
    episode = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, episode_timeout_s=600), TASK, 0, 1.0))
    assert (episode.truncation, len(episode.turns)) == ("time", 1)
    assert episode.reward is not None and episode.reward.total == 0.5
    assert engine.cancelled == ["train-0/0/1"]


@pytest.mark.parametrize("happens", [nothing, ten_minutes], ids=["in time", "too late"])
def test_tokens_for_others_show_that_an_engine_does_not_hang(tokenizer, threads, happens: Callable[..., Any]) -> None:
    """A request waits for its turn, for longer than an engine may be silent."""

    class Busy(Interrupted):
        async def _goes_on(self, number: int, request_id: str) -> None:
            for _ in range(int(2 * HANGS / SLOW) if number else 0):
                await asyncio.sleep(SLOW)
                self._gate.sampled(1)  # for somebody else
            self.token_s = 0.0
            await super()._goes_on(number, request_id)

    engine = Busy(say(tokenizer, "measure", "done"), happens)
    episode = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, episode_timeout_s=600), TASK, 0, 1.0))
    assert episode.reward is not None
    assert (episode.truncation, episode.reward.total) == ((None, 1.0) if happens is nothing else ("time", 0.5))


@pytest.mark.parametrize("asked", [False, True], ids=["before it is asked", "in the middle of an answer"])
def test_new_weights_that_take_longer_than_anybody_may_are_neither_slow_nor_a_fault(tokenizer, threads, asked: bool) -> None:
    at_the_gate = asyncio.Event()

    class Asked(ScriptedEngine):
        async def generate(self, request: Any) -> Any:
            at_the_gate.set()
            return await super().generate(request)

    async def played() -> Any:
        engine = Asked(say(tokenizer, "done"), timeout_s=HANGS)
        engine._gate.held_s, engine.token_s = 6000.0, SLOW
        if not asked:
            await engine.pause_generation()
        playing = asyncio.ensure_future(run_with_retries(parts(tokenizer, threads, engine, episode_timeout_s=600), TASK, 0, 1.0))
        await at_the_gate.wait()
        while asked and engine._gate.tokens == 0:
            await asyncio.sleep(SLOW / 4)
        if asked:
            await engine.pause_generation(finish=False)
        await engine.start_weight_update({})
        await asyncio.sleep(SLOW)
        ten_minutes(engine)
        await asyncio.sleep(3 * HANGS)
        await engine.finish_weight_update(1)
        await engine.resume_generation()
        return await playing

    episode = asyncio.run(played())
    assert episode.reward is not None and (episode.truncation, episode.reward.total) == (None, 0.5)
    versions = episode.turns[0].policy_version.tolist()
    assert (versions[0], versions[-1]) == (0 if asked else 1, 1)


async def test_a_slow_environment_is_not_the_policys_doing(tokenizer, threads) -> None:
    engine, loop = ScriptedEngine(say(tokenizer, "measure")), patient_loop()

    def spent() -> None:
        until = loop.time() + 400
        loop.pass_time(400)
        while loop.time() < until:
            time.sleep(0.001)

    slow = parts(tokenizer, threads, engine, env_args={"before": spent}, episode_timeout_s=1000.0, step_timeout_s=30_000.0)
    failure = (await run_episode(slow, TASK, 0, 1.0)).outcome
    assert isinstance(failure, Failure) and (failure.kind, failure.culprit) == (FailureKind.ENV_TIMEOUT, f"{ENV_ID} step")
    assert "of the 1000 s that an environment may take" in failure.detail


def test_a_judgement_that_never_comes_is_the_verifiers_doing(tokenizer, threads) -> None:
    class Stuck:
        name = "stuck"

        async def score(self, episode: RewardInput) -> Score:
            patient_loop().pass_time(600)
            await asyncio.Event().wait()
            raise AssertionError

    stuck = parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "done")), Rubric([(Stuck(), 1.0)], 0.0), episode_timeout_s=600)
    episode = asyncio.run(run_with_retries(stuck, TASK, 0, 1.0))
    failure = episode.outcome
    assert isinstance(failure, Failure) and failure.kind is FailureKind.VERIFIER_TIMEOUT
    assert failure.culprit == "rewards of episode train-0/0" and "no judgement within 600 s" in failure.detail


def test_an_answer_that_ends_the_episode_cut_at_its_limit_says_so(tokenizer, threads) -> None:
    done = tokenizer.encode("done", add_special_tokens=False)
    cut = asyncio.run(run_episode(parts(tokenizer, threads, ScriptedEngine([done])), TASK, 0, 1.0))
    assert cut.truncation == "max_tokens" and cut.reward is not None
    short = ScriptedEngine([done], max_context=len(cut.trajectories[0]))
    assert asyncio.run(run_episode(parts(tokenizer, threads, short), TASK, 0, 1.0)).truncation == "context"
    whole = ScriptedEngine(say(tokenizer, "measure"))
    assert asyncio.run(run_episode(parts(tokenizer, threads, whole), TASK, 0, 1.0)).truncation == "max_turns"


@pytest.mark.parametrize("args", [{"says": "\ud800"}, {"tool": "\ud800"}])
def test_what_cannot_be_rendered_fails_its_episode_and_no_other(tokenizer, threads, args: dict[str, str]) -> None:
    episode = asyncio.run(run_episode(parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "measure")), env_args=args), TASK, 0, 1.0))
    failure = episode.outcome
    assert isinstance(failure, Failure) and (failure.kind, failure.culprit) == (FailureKind.ENV_ERROR, ENV_ID)
    assert "lone surrogate" in failure.detail
    stored = transcript_of(episode, run="r", phase="rft", step=1)
    assert stored.failure is not None and "lone surrogate" in stored.failure.detail
    assert [message.text for message in stored.chat] == (["say measure", "measure", "\ud800"] if "says" in args else [])


@pytest.mark.parametrize("error", [KeyError("name"), TypeError("not a string"), RuntimeError("the template gave up")])
def test_whatever_a_template_raises_fails_its_episode_and_no_other(tokenizer, threads, monkeypatch, error: Exception) -> None:
    """The second prompt cannot be rendered: what the environment answered is what the template does not take."""
    made = parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "measure")))
    prompt = made.renderer.prompt

    def broken(messages: Any, tools: Any = ()) -> str:
        if len(messages) > 1:
            raise error
        return str(prompt(messages, tools))

    monkeypatch.setattr(made.renderer, "prompt", broken)
    episode = asyncio.run(run_episode(made, TASK, 0, 1.0))
    failure = episode.outcome
    assert isinstance(failure, Failure) and (failure.kind, failure.culprit) == (FailureKind.ENV_ERROR, ENV_ID)
    assert str(error) in failure.detail and len(episode.turns) == 1


def test_a_system_message_that_a_template_refuses_fails_its_episode_and_no_other(threads) -> None:
    """Gemma's own template raises for one."""
    gemma = family_tokenizer("gemma")
    ends = gemma.convert_tokens_to_ids("<end_of_turn>")
    engine = ScriptedEngine([Reply([*gemma.encode("4", add_special_tokens=False), ends])])
    made = EpisodeParts("burnish/SingleTurn-v0", {}, engine, TemplateRenderer(gemma), Rubric([], 1.0), RolloutConfig(), threads, seed=3)
    asked = Message("user", "2 + 2?")
    ruled = asyncio.run(run_episode(made, Task("a", 1, (Message("system", "be brief"), asked)), 0, 1.0))
    failure = ruled.outcome
    assert isinstance(failure, Failure) and failure.kind is FailureKind.ENV_ERROR and "System role not supported" in failure.detail
    plain = asyncio.run(run_episode(made, Task("b", 1, (asked,)), 0, 1.0))
    assert plain.reward is not None and plain.messages[-1].text == "4"


def test_a_failed_episode_keeps_what_was_said_and_nothing_to_train_on(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "hello", "measure"))
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine, env_args={"fail_on": "meas"}), TASK, 0, 1.0))
    assert [(message.role, message.text) for message in episode.messages] == [
        ("user", "say measure"),
        ("assistant", "hello"),
        ("user", "you said hello"),
        ("assistant", "measure"),
    ]
    assert (len(episode.turns), episode.trajectories, episode.metrics) == (2, (), {})
    unjudged = parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "done")), Rubric([(Down(times=9), 1.0)], 0.0, backoff_s=0.0))
    assert [message.text for message in asyncio.run(run_episode(unjudged, TASK, 0, 1.0)).messages] == ["say measure", "done"]


def test_an_environment_that_raises_is_a_failure_that_names_it(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure"))
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine, env_args={"fail_on": "meas"}), TASK, 0, 1.0))
    failure = episode.outcome
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.culprit) == (FailureKind.ENV_ERROR, ENV_ID)
    assert "the gauge is broken" in failure.detail
    assert episode.reward is None and episode.trajectories == ()


def _raises(error: BaseException) -> Callable[[], Any]:
    def raising() -> None:
        raise error

    return raising


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ESCAPES = {
    "SystemExit: 3": SystemExit(3),
    "CancelledError: ": asyncio.CancelledError(),
    "KeyboardInterrupt: ": KeyboardInterrupt(),
    "GeneratorExit: ": GeneratorExit(),
    "Mute: (its message cannot be read: RuntimeError)": Mute(),
}


@pytest.mark.parametrize("said", ESCAPES)
def test_whatever_an_environment_raises_is_its_failure_and_ends_no_loop(tokenizer, threads, said: str) -> None:
    """argparse over the policy's words is enough to exit. The runner's loop died of it, or waited for the episode for ever."""
    engine, args = ScriptedEngine(say(tokenizer, "measure")), {"before": _raises(ESCAPES[said])}
    limits = parts(tokenizer, threads, engine, env_args=args, retries=0)
    failure = asyncio.run(asyncio.wait_for(run_with_retries(limits, TASK, 0, 1.0), 60)).outcome
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.culprit) == (FailureKind.ENV_ERROR, ENV_ID)
    assert failure.detail.startswith(f"{said}\n  at ") and "in raising" in failure.detail


def test_what_an_environment_says_when_it_fails_is_kept_short_and_shows_its_control_characters(tokenizer, threads) -> None:
    engine, args = ScriptedEngine(say(tokenizer, "measure")), {"before": _raises(ValueError("\x1b[2J" + "x" * 20_000_000))}
    failure = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, env_args=args, retries=1), TASK, 0, 1.0)).outcome
    assert isinstance(failure, Failure) and len(failure.detail) <= MAX_DETAIL
    assert failure.detail.startswith("ValueError: \\x1b[2Jxxx") and "in raising" in failure.detail
    assert failure.detail.endswith("(episode tried 2 times)")


class Telling(ThreadPoolExecutor):
    """Says when a call has ended."""

    def __init__(self) -> None:
        super().__init__(4)
        self.ended = threading.Event()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self.ended.set())
        return future


async def test_what_holds_up_the_event_loop_is_not_the_environments_time(tokenizer) -> None:
    """It answered in time, and the loop looked when the deadline had passed: the episode failed, and its clock had lost the seconds."""
    loop, blocked = patient_loop(), threading.Event()

    def block() -> None:
        blocked.set()
        pool.ended.wait(30)
        loop.pass_time(400)

    def answer() -> None:
        pool.ended.clear()
        loop.call_soon_threadsafe(block)
        blocked.wait(30)

    with Telling() as pool:
        engine = ScriptedEngine(say(tokenizer, "measure", "done"))
        limits = parts(tokenizer, pool, engine, env_args={"before": answer}, step_timeout_s=300.0, episode_timeout_s=500.0)
        assert (await run_episode(limits, TASK, 0, 1.0)).reward is not None


def test_a_long_observation_is_encoded_beside_the_loop_and_one_that_cannot_fit_not_at_all(tokenizer, threads, monkeypatch) -> None:
    encoded: list[tuple[int, bool]] = []
    encode = TemplateRenderer.encode

    def told(self: TemplateRenderer, text: str) -> list[int]:
        encoded.append((len(text), threading.current_thread() is threading.main_thread()))
        return encode(self, text)

    for length, room, tried in ((30_000, 100_000, [False]), (2_000_000, 100, [])):
        engine = ScriptedEngine(say(tokenizer, "measure", "done"), max_context=room)
        limits = parts(tokenizer, threads, engine, env_args={"says": "z" * length})
        monkeypatch.setattr(TemplateRenderer, "encode", told)
        encoded.clear()
        episode = asyncio.run(run_episode(limits, TASK, 0, 1.0))
        monkeypatch.undo()
        assert episode.reward is not None and episode.truncation == (None if tried else "context")
        assert [on_loop for size, on_loop in encoded if size > 10_000] == tried


async def test_how_a_call_that_came_too_late_ended_is_read(tokenizer, threads) -> None:
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context["message"]))

    def breaks() -> None:
        raise OSError("after its deadline")

    limits = parts(tokenizer, threads, ScriptedEngine([[1]]))
    late = Failure(FailureKind.ENV_TIMEOUT, ENV_ID, "no answer")
    with pytest.raises(EpisodeFailure, match="no answer"):
        await _Episode(limits, TASK, "train-0/0", 1.0, Talk()).in_thread(breaks, "step", 60.0, late, _Span(lambda: 100.0, 0.0))
    gc.collect()
    await asyncio.sleep(0)
    assert said == [], "asyncio says of an exception that nobody read that it was never retrieved"


def test_rewards_that_add_up_to_no_number_are_a_failure_of_the_environment(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure", "measure", "done"))
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine, env_args={"reward": 1.7e308}), TASK, 0, 1.0))
    assert isinstance(episode.outcome, Failure) and episode.outcome.kind is FailureKind.ENV_ERROR
    assert "add up to more than a number holds" in episode.outcome.detail


def test_an_environment_that_cannot_close_loses_no_episode_and_hides_no_failure(tokenizer, threads, caplog) -> None:
    engine = ScriptedEngine(say(tokenizer, "measure", "done"))
    episode = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, env_args={"fail_closing": True}), TASK, 0, 1.0))
    assert episode.reward is not None and len(engine.requests) == 2
    assert "train-0/0" in caplog.text and "the door is stuck" in caplog.text
    engine, args = ScriptedEngine(say(tokenizer, "measure")), {"fail_on": "meas", "fail_closing": True}
    failure = asyncio.run(run_episode(parts(tokenizer, threads, engine, env_args=args), TASK, 0, 1.0)).outcome
    assert isinstance(failure, Failure) and (failure.kind, failure.culprit) == (FailureKind.ENV_ERROR, ENV_ID)
    assert "the gauge is broken" in failure.detail


async def test_an_environment_whose_time_is_spent_is_closed_before_the_episode_ends(tokenizer, threads) -> None:
    engine, release, closed, loop = ScriptedEngine(say(tokenizer, "measure")), threading.Event(), threading.Event(), patient_loop()

    def hang() -> None:
        loop.pass_time(400)
        release.wait(30)

    def close() -> None:
        time.sleep(0.1)  # no time is left of the environment's own, and it takes some
        closed.set()

    args = {"before": hang, "closed": close}
    slow = parts(tokenizer, threads, engine, env_args=args, episode_timeout_s=300, step_timeout_s=600)
    try:
        failure = (await run_episode(slow, TASK, 0, 1.0)).outcome
        assert closed.is_set()
    finally:
        release.set()
    assert isinstance(failure, Failure) and failure.kind is FailureKind.ENV_TIMEOUT and "what was left" in failure.detail


def test_a_log_probability_that_is_not_finite_is_a_failure_of_the_engine(tokenizer, threads) -> None:
    (said,) = say(tokenizer, "done")
    engine = ScriptedEngine([Reply(said.token_ids, [float("nan")] * len(said.token_ids)), said])
    episode = asyncio.run(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))
    assert isinstance(episode.outcome, Failure) and episode.trajectories == ()
    assert (episode.outcome.kind, episode.outcome.culprit) == (FailureKind.ENGINE_ERROR, "scripted")
    assert asyncio.run(run_with_retries(parts(tokenizer, threads, engine, retries=1), TASK, 0, 1.0)).reward is not None


async def test_an_environment_past_its_deadline_is_a_timeout(tokenizer, threads) -> None:
    engine, release, loop = ScriptedEngine(say(tokenizer, "measure")), threading.Event(), patient_loop()

    def hang() -> None:
        loop.pass_time(60)
        release.wait(30)

    slow = parts(tokenizer, threads, engine, env_args={"before": hang}, step_timeout_s=60)
    try:
        failure = (await run_episode(slow, TASK, 0, 1.0)).outcome
    finally:
        release.set()
    assert isinstance(failure, Failure) and failure.kind is FailureKind.ENV_TIMEOUT
    assert failure.culprit == f"{ENV_ID} step" and "60 s" in failure.detail


def test_an_engine_failure_is_retried_with_a_fresh_environment(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "done"), faults={0: FailureKind.ENGINE_ERROR})
    episode = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, retries=1), TASK, 0, 1.0))
    assert episode.reward is not None
    assert len(engine.requests) == 2


def test_a_failure_that_stays_says_how_often_it_was_tried(tokenizer, threads) -> None:
    engine = ScriptedEngine(say(tokenizer, "done"))
    engine.lose("out of memory")
    failure = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, retries=2), TASK, 0, 1.0)).outcome
    assert isinstance(failure, Failure) and failure.kind is FailureKind.ENGINE_LOST
    assert "tried 3 times" in failure.detail


class Down:
    """A scorer that is down for its first `times` calls."""

    name = "verdict"

    def __init__(self, times: int) -> None:
        self.left, self.calls = times, 0

    async def score(self, episode: RewardInput) -> Score:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise EpisodeFailure(Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdict@nowhere", "connection refused"))
        return Score(1.0)


def test_a_verifier_that_is_down_masks_the_episode_and_never_rewards_zero(tokenizer, threads) -> None:
    scorer = Down(times=100)
    rubric = Rubric([(scorer, 1.0)], 0.0, retries=2, backoff_s=0.0)
    engine = ScriptedEngine(say(tokenizer, "done"))
    failure = asyncio.run(run_with_retries(parts(tokenizer, threads, engine, rubric), TASK, 0, 1.0)).outcome
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.culprit) == (FailureKind.VERIFIER_UNAVAILABLE, "verdict@nowhere")
    assert scorer.calls == 3, "the rubric tries the scoring again; the conversation is not played again"
    assert len(engine.requests) == 1


def test_a_verifier_that_comes_back_in_time_gives_its_reward(tokenizer, threads) -> None:
    rubric = Rubric([(Down(times=1), 1.0)], 0.0, retries=2, backoff_s=0.0)
    episode = asyncio.run(run_episode(parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "done")), rubric), TASK, 0, 1.0))
    assert episode.reward is not None and episode.reward.total == 1.0


def test_collect_keeps_within_its_concurrency_and_closes_every_environment(tokenizer, threads) -> None:
    Echo.open_now = Echo.most_open = 0
    engine = ScriptedEngine(say(tokenizer, "done"), delay_s=0.005)
    shared = parts(tokenizer, threads, engine, concurrency=3)

    async def everything() -> list[Any]:
        return [group async for group in collect(shared, [Task(f"train-{i}", i) for i in range(4)], 4, 1.0)]

    groups = asyncio.run(everything())
    assert sorted(group.task.id for group in groups) == ["train-0", "train-1", "train-2", "train-3"]
    assert all([episode.sample for episode in group.episodes] == [0, 1, 2, 3] for group in groups)
    assert (Echo.open_now, Echo.most_open <= 3) == (0, True)


def test_cancelling_aborts_inside_the_engine_and_closes_environments(tokenizer, threads) -> None:
    Echo.open_now = 0
    engine = ScriptedEngine(say(tokenizer, "done"), delay_s=30.0)

    async def stop_early() -> None:
        running = asyncio.create_task(run_episode(parts(tokenizer, threads, engine), TASK, 0, 1.0))
        while not engine.requests:
            await asyncio.sleep(0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(stop_early())
    assert engine.cancelled == ["train-0/0/0"]
    assert Echo.open_now == 0


def test_sampling_seeds_depend_on_the_request_alone() -> None:
    seeds = {request_seed(1, f"train-0/{sample}/{turn}") for sample in range(8) for turn in range(4)}
    assert len(seeds) == 32
    assert request_seed(1, "train-0/0/0") == request_seed(1, "train-0/0/0") != request_seed(2, "train-0/0/0")
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_arrays_line_up() -> None:
    from burnish.rollout.engine.base import Generation
    from burnish.rollout.trajectory import TrajectoryBuilder

    builder = TrajectoryBuilder([1, 7])
    builder.sampled(Generation(np.array([5, 2], np.int32), np.array([-0.5, -0.1], np.float32), np.array([3, 3], np.int32), "stop", 0.0))
    builder.observed([9])
    (built,) = builder.build()
    assert built.token_ids.tolist() == [1, 7, 5, 2, 9]
    assert built.trainable.tolist() == [False, False, True, True, False]
    assert built.logprobs.tolist() == pytest.approx([0.0, 0.0, -0.5, -0.1, 0.0])
    assert built.policy_version.tolist() == [-1, -1, 3, 3, -1]
    assert built.prompt_length == 2


def tool_env(parser: str = "auto") -> ToolEnv:
    @tool
    def look(part: int) -> str:
        """Look at a part."""
        return f"part {part} is fine"

    return ToolEnv(Echo(), ToolSet([look]), parser=parser)


@pytest.fixture
def tools_id() -> Iterator[str]:
    id = "tests/EchoTools-v0"
    register_env(id, tool_env)
    yield id
    ENVS._loaded.pop(id)


async def test_tools_are_called_in_the_format_of_the_chat_template(tokenizer, threads, tools_id) -> None:
    call = '<tool_call>{"name": "look", "arguments": {"part": 3}}</tool_call>'
    engine = ScriptedEngine([Reply([*awkward(tokenizer, call), tokenizer.eos_token_id]), *say(tokenizer, "done")], max_context=4096)
    made = parts(tokenizer, threads, engine, describe_tools=False)
    made = replace(
        made, env_id=tools_id, tool_parser="burnish/hermes-v1", limits=made.limits.model_copy(update={"max_tokens_per_turn": 256})
    )
    episode = await run_episode(made, TASK, 0, 1.0)
    assert [message.text for message in episode.messages if message.role == "tool"] == ["part 3 is fine"], episode.outcome
    assert (episode.metrics["tool_calls"], episode.metrics["malformed_calls"]) == (1.0, 0.0)
    assert episode.tools == (), "the prompt described none"
    made = replace(
        made,
        engine=ScriptedEngine(say(tokenizer, "done"), max_context=4096),
        limits=made.limits.model_copy(update={"describe_tools": True}),
    )
    assert [tool["function"]["name"] for tool in (await run_episode(made, TASK, 0, 1.0)).tools] == ["look"]


async def test_a_parser_that_would_see_no_call_of_the_template_ends_the_run(tokenizer, threads, tools_id) -> None:
    made = parts(tokenizer, threads, ScriptedEngine(say(tokenizer, "done")), env_args={"parser": "pythonic"})
    with pytest.raises(ValueError, match="in the format of burnish/hermes-v1, and the environment reads burnish/pythonic-v1"):
        await run_episode(replace(made, env_id=tools_id, tool_parser="burnish/hermes-v1"), TASK, 0, 1.0)
