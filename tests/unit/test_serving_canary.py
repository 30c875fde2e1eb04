"""A canary on trial: what the evidence says, when it has to go, and what a judge that fails changes."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_serving_deployment import Shop

from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.background import background
from burnish.rpc.server import Server
from burnish.serving.audit import Metrics, Record
from burnish.serving.canary import watch
from burnish.serving.canary.config import JudgeTable
from burnish.serving.canary.evidence import _ALTERNATIVES, RATES, log_evidence
from burnish.serving.canary.judge import CanaryJudge, JudgedAnswer, judge_of
from burnish.serving.canary.rollbacks import Rollbacks, rollbacks_file
from burnish.serving.canary.watch import Canary, CanaryWatch, Judgement, JudgeOutage
from burnish.serving.deployment import Deployer, Deployment, read_deployment
from burnish.serving.observed import Answered, Choice, Question
from burnish.serving.routes import VersionShare, canaries, version_for, without

pytestmark = pytest.mark.unit

ERROR = 0.05
TABLE = JudgeTable(use="canary-test/right-v1")
PLUGIN = """
from burnish import reward

@reward("canary-test/right-v1")
def right(episode):
    if episode.answer == "broken":
        raise RuntimeError("the judge stumbles")
    return 1.0 if episode.answer == "right" else 0.2

@reward("canary-test/rank-v1", level="group")
def rank(episodes):
    return [0.0 for _ in episodes]
"""

# ---------------------------------------------------------------------------------------------------------------- evidence


def test_the_evidence_is_what_a_hand_computes() -> None:
    """Of one pair, the canary failed and the primary passed: under (c, p) its likelihood is (1 - c) p, under z it is (1 - z) z."""
    factors = [(1 - c) * p / ((1 - (c + p) / 2) * (c + p) / 2) for i, c in enumerate(RATES) for p in RATES[i + 1 :]]
    assert len(factors) == 55
    assert math.exp(log_evidence(1, 0, 1)) == pytest.approx(sum(factors) / 55)
    assert log_evidence(0, 0, 0) == 0.0
    assert log_evidence(10, 10, 10) < 0 and log_evidence(10, 9, 3) < 0, "a canary that is as good, or better"
    assert math.exp(log_evidence(25, 5, 25)) > 20 > math.exp(log_evidence(25, 20, 25))


def test_a_canary_that_is_no_worse_has_no_evidence_against_it_on_average() -> None:
    """The mean of a pair's factor is at most 1 for every pair of rates of which the canary's is not the lower: an e-value."""
    worst = 0.0
    rates = np.linspace(0, 1, 101)
    for yes, no, right, wrong in np.exp(_ALTERNATIVES):
        canary, primary = yes * rates + no * (1 - rates), right * rates + wrong * (1 - rates)
        means = np.outer(canary, primary)
        worst = max(worst, float(means[np.tril_indices(101)].max()))
    assert worst <= 1 + 1e-12


def crossing(canary: float, primary: float, pairs: int, error: float) -> float:
    """The chance that the evidence ever reaches 1 / error within so many pairs, exactly: by all counts that there can be."""
    chance, crossed = np.zeros((pairs + 1, pairs + 1)), 0.0
    chance[0, 0] = 1.0
    for n in range(1, pairs + 1):
        after = np.zeros_like(chance)
        for passed, right in product((0, 1), (0, 1)):
            weight = (canary if passed else 1 - canary) * (primary if right else 1 - primary)
            after[passed:, right:] += weight * chance[: pairs + 1 - passed, : pairs + 1 - right]
        for i, j in zip(*np.nonzero(after[: n + 1, : n + 1]), strict=True):
            if log_evidence(n, int(i), int(j)) >= -math.log(error):
                crossed += after[i, j]
                after[i, j] = 0.0
        chance = after
    return crossed


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_error_is_kept_whenever_one_looks(rate: float) -> None:
    assert crossing(rate, rate, 50, ERROR) <= ERROR


def test_a_planted_regression_is_found_within_50_pairs() -> None:
    """From 90 % to 50 %: an exact chance of 95.5 % within 50 pairs, which 100 requests at equal weights have."""
    assert crossing(0.5, 0.9, 50, ERROR) == pytest.approx(0.9554, abs=0.001)


# ---------------------------------------------------------------------------------------------------------------- the watch


class Traffic:
    """Requests of many callers to model m, versions v1 (the primary) and v2 (the canary), answered right at given rates."""

    def __init__(self, v1: float, v2: float, seed: int = 0, table: JudgeTable = TABLE, weight: float = 50) -> None:
        self.random, self.rates = random.Random(seed), {"m:v1": v1, "m:v2": v2}
        self.routes: Any = {"m": (VersionShare("v1", 100 - weight), VersionShare("v2", weight, judge=table))}
        self.metrics, self.kept, self.asked, self.down = Metrics(), list[tuple[str, str]](), 0, False
        self.now, self.requests = 0.0, 0
        self.watch = CanaryWatch(self.ask, self.leave, self.metrics, self.keep, lambda: self.now, self.random.random)
        self.watch.follow(canaries(self.routes))

    async def ask(self, canary: str, exchange: JudgedAnswer) -> float:
        assert canary == "m:v2"
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise JudgeOutage("nobody is there")
        return 1.0 if exchange.answer["content"] == "right" else 0.0

    async def keep(self, answered: Answered, asked: Question, choice: Choice, verdicts: dict[str, bool]) -> None:
        assert asked.messages == [{"role": "user", "content": "?"}] and verdicts == {"judge": False}
        self.kept.append((answered.record.version, str(choice.message["content"])))

    def leave(self, version: str) -> None:
        self.routes = without(self.routes, [version])

    async def request(self, model: str = "m", finish: str = "stop", calls: bool = False) -> str:
        self.requests += 1
        record = Record("chat", f"chatcmpl-{self.random.random()}", model=model)
        record.version = version_for(self.routes, model, record.id)
        text = "right" if self.random.random() < self.rates[record.version] else "wrong"
        message = {"role": "assistant", "content": text, **({"tool_calls": [{"id": "a"}]} if calls else {})}
        body = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
        self.watch.consider(Answered(record, {"messages": [{"role": "user", "content": "?"}]}, body, False))
        await asyncio.sleep(0)
        return record.version

    async def run(self, requests: int) -> Judgement:
        for _ in range(requests):
            await self.request()
            if self.standing.state == "rolled back":
                break
        await self.watch.settled()
        return self.standing

    @property
    def standing(self) -> Judgement:
        return self.watch.judgements()["m:v2"]


async def test_ten_planted_regressions_are_rolled_back_within_200_requests_and_ten_canaries_without_one_are_not() -> None:
    worse = [Traffic(0.9, 0.5, seed) for seed in range(10)]
    for traffic in worse:
        found = await traffic.run(200)
        assert found.state == "rolled back" and found.log_evidence >= math.log(20), found.line
    for seed in range(10):
        traffic = Traffic(0.9, 0.9, seed)
        assert (await traffic.run(200)).state == "judging"
        assert 70 <= traffic.standing.pairs <= 100 and traffic.requests == 200
    assert max(traffic.requests for traffic in worse) <= 200


async def test_completions_are_not_judged() -> None:
    traffic = Traffic(1.0, 0.0)
    record = Record("completions", "cmpl-1", model="m", version="m:v2")
    body = json.dumps({"choices": [{"index": 0, "text": "wrong", "finish_reason": "stop"}]}).encode()
    traffic.watch.consider(Answered(record, {"prompt": "?"}, body, False))
    await traffic.watch.settled()
    assert traffic.asked == 0


async def test_a_canary_that_has_to_go_has_no_more_callers_at_once_and_says_by_what_figures() -> None:
    traffic = Traffic(1.0, 0.0)
    found = await traffic.run(200)
    assert found.canary_passed == 0 and found.primary_passed == found.pairs
    assert traffic.routes["m"] == (VersionShare("v1", 50), VersionShare("v2", 0, judge=TABLE))
    assert {await traffic.request() for _ in range(50)} == {"m:v1"}
    asked = traffic.asked
    assert found.line.startswith(
        f"m:v2 is rolled back: 0 of {found.pairs} answers passed, and {found.pairs} of {found.pairs} of m:v1; evidence "
    )
    assert found.line.endswith(" of 20 (error 0.05)")
    await traffic.watch.settled()
    assert traffic.asked == asked, "nobody is judged any more"
    assert set(traffic.kept) == {("m:v2", "wrong")}, "what failed is kept, for tasks"
    page = traffic.metrics.page().decode()
    assert 'burnish_judged_total{verdict="failed",version="m:v2"}' in page and 'verdict="outage"' not in page


async def test_an_outage_is_no_verdict_and_after_its_budget_nothing_more_is_asked() -> None:
    traffic = Traffic(0.9, 0.9, table=JudgeTable(use="canary-test/right-v1", outages=3))
    await traffic.run(40)
    before = traffic.standing
    traffic.down = True
    pauses, asked = list[float](), 0
    while traffic.standing.state == "judging":
        asked, began = traffic.asked, traffic.now
        while traffic.asked == asked:
            await traffic.request()
            await traffic.watch.settled()
            traffic.now += 0.25
        pauses.append(traffic.now - began)
        assert len(pauses) < 10
    assert traffic.asked == asked + 1 and len(pauses) == 3
    assert pauses[0] < 1 <= pauses[1] < 2 <= pauses[2], "left alone for a second, then for two"
    after = traffic.standing
    assert (after.state, after.pairs, after.canary_passed) == ("off", before.pairs, before.canary_passed)
    said = "m:v2 is no longer judged, and answers on: its judge failed 3 times in a row, last: nobody is there; until then "
    assert after.line.startswith(said)
    assert traffic.routes["m"][1].weight == 50, "an outage rolls nothing back"
    traffic.now, traffic.down, asked = 1e6, False, traffic.asked
    await traffic.run(20)
    assert traffic.asked == asked


async def test_a_judge_that_comes_back_has_its_whole_budget_again() -> None:
    traffic = Traffic(0.9, 0.9, table=JudgeTable(use="canary-test/right-v1", outages=2))
    for _ in range(5):
        traffic.down = True
        await traffic.request()
        await traffic.watch.settled()
        traffic.now, traffic.down = traffic.now + 1e3, False
        await traffic.run(40)
    assert traffic.standing.state == "judging"


async def test_only_what_a_version_answered_of_itself_is_judged() -> None:
    traffic = Traffic(1.0, 1.0)
    await traffic.request("m:v2")
    await traffic.request(calls=True)
    assert traffic.asked == 0, "who asks for a version chose it; a call is no answer yet"
    for _ in range(20):
        await traffic.request(finish="content_filter")
    await traffic.watch.settled()
    assert traffic.asked == 0 and traffic.standing.primary_passed == 0 < traffic.standing.pairs, "what a policy held back has failed"


async def test_a_share_of_answers_is_judged_and_of_each_side_as_many() -> None:
    traffic = Traffic(1.0, 1.0, weight=5)
    await traffic.run(1000)
    canary = traffic.asked - traffic.standing.pairs
    assert traffic.standing.pairs > 30 and canary - traffic.standing.pairs <= watch.MOST_AHEAD
    few = Traffic(1.0, 1.0, table=JudgeTable(use="canary-test/right-v1", share=0.1))
    await few.run(1000)
    assert 50 < few.asked < 150


async def test_verdicts_count_in_the_order_of_their_answers_however_long_they_take() -> None:
    """Else a judge that is slow to fail would let a canary look good."""
    traffic, waiting = Traffic(1.0, 1.0), list[asyncio.Future[float]]()

    async def ask(canary: str, exchange: JudgedAnswer) -> float:
        waiting.append(asyncio.get_running_loop().create_future())
        return await waiting[-1]

    traffic.watch._ask = ask
    versions = [await traffic.request() for _ in range(12)]
    last = [versions.index(version) for version in ("m:v1", "m:v2")]
    for i, future in enumerate(waiting):
        if i not in last:
            future.set_result(1.0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert traffic.standing.pairs == 0, "the first of each side is still being judged"
    for i in last:
        waiting[i].set_result(0.0)
    await traffic.watch.settled()
    assert traffic.standing.pairs == min(versions.count("m:v1"), versions.count("m:v2"))
    assert traffic.standing.canary_passed == traffic.standing.primary_passed == traffic.standing.pairs - 1


# ---------------------------------------------------------------------------------------------------------------- judges and files


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugins") / "right.py"
    file.write_text(PLUGIN)
    return str(file)


async def test_a_judge_is_the_reward_that_trained_and_what_it_raises_is_no_verdict(plugin: str) -> None:
    judge = CanaryJudge(JudgeTable(use="canary-test/right-v1", plugins=(plugin,)))
    asked = [{"role": "user", "content": "2 + 2?"}]

    def exchange(text: str) -> JudgedAnswer:
        return JudgedAnswer("a", asked, {"role": "assistant", "content": text})

    assert await judge.score(exchange("right")) == (1.0, "")
    assert await judge.score(exchange("wrong")) == (0.2, "")
    value, why = await judge.score(exchange("broken"))
    assert value is None and "reward_error in canary-test/right-v1" in why and "\n" not in why
    gone = CanaryJudge(JudgeTable(verifier="127.0.0.1:1", timeout_s=5))
    value, why = await gone.score(exchange("right"))
    assert value is None and why.startswith("verifier_")


async def test_a_verifier_behind_a_socket_judges_and_rolls_back() -> None:
    def right(episode: RewardInput) -> Score:
        if episode.answer == "broken":
            raise RuntimeError("the judge stumbles")
        return Score(1.0 if episode.answer == "right" else 0.2)

    both = [Verifier("canary-test/right-verdict-v1", right), Verifier("canary-test/all-v1", lambda _: 1.0)]
    home, server = background(), Server([VerifierService(both)])
    address = await asyncio.to_thread(home.run, server.start(), 60.0)
    table = JudgeTable(verifier=address, verifier_id="canary-test/right-verdict-v1", timeout_s=30)
    judge = CanaryJudge(table)

    async def ask(canary: str, exchange: JudgedAnswer) -> float:
        value, why = await judge.score(exchange)
        if value is None:
            raise JudgeOutage(why)
        return value

    async def standing(v1: float, v2: float) -> Judgement:
        traffic = Traffic(v1, v2, table=table)
        traffic.watch._ask = ask
        for _ in range(60):
            await traffic.request()
            await traffic.watch.settled()
        return traffic.standing

    try:
        asked, words = [{"role": "user", "content": "?"}], ("right", "wrong", "broken")
        found = [await judge.score(JudgedAnswer("a", asked, {"role": "assistant", "content": text})) for text in words]
        assert found[:2] == [(1.0, ""), (0.2, "")]
        value, why = found[2]
        assert value is None and "verifier_error" in why and "the judge stumbles" in why and "\n" not in why
        assert (await standing(1.0, 0.2)).state == "rolled back"
        good = await standing(1.0, 1.0)
        assert (good.state, good.canary_passed, good.primary_passed) == ("judging", good.pairs, good.pairs) and good.pairs > 10
    finally:
        await asyncio.to_thread(home.run, server.stop(), 60.0)


def test_the_pages_tables_are_read_and_its_figures_are_the_tests() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    text = page.partition("## A canary that is judged")[2].partition("```toml\n")[2].partition("```")[0]
    read = Deployment.model_validate(tomllib.loads(text))
    judge = read.served()["inspector:v2"].judge
    assert judge is not None and judge.plugins == ("right.py",)
    named = re.findall(r"^\| `\[models.NAME.versions.VERSION.judge\]`.*?\n\n", page, re.MULTILINE | re.DOTALL)[0]
    assert set(re.findall(r"`(\w+)`", named)) - {"use"} == JudgeTable.model_fields.keys() - {"use"}
    assert crossing(0.7, 0.9, 25, ERROR) == pytest.approx(0.149, abs=0.001)


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("", "needs exactly one of use"),
        ('use = "right"', "must read namespace/name-vN"),
        ('verifier = "service:right"', "services are of recipes"),
        ('verifier = "127.0.0.1:1"\nargs = { a = 1 }', "args has no effect on a verifier"),
        ('verifier = "127.0.0.1:1"\nplugins = ["a.py"]', "plugins has no effect without use"),
        ('use = "a/b-v1"\nshare = 0', "share"),
        ('use = "a/b-v1"\nerror = 0.9', "error"),
    ],
)
def test_a_judge_that_is_none_is_said_so_in_one_line(tmp_path: Path, judge: str, says: str) -> None:
    file = tmp_path / "d.toml"
    file.write_text(f'[models.m.versions.v1]\nmodel = "a"\n[models.m.versions.v2]\nmodel = "b"\n[models.m.versions.v2.judge]\n{judge}\n')
    with pytest.raises(ValueError, match=says) as caught:
        read_deployment(file)
    assert "\n" not in str(caught.value)


def test_a_judge_needs_something_to_compare_with_and_one_answer_at_a_time(plugin: str) -> None:
    with pytest.raises(ValueError, match="v1 has a judge and nothing to be compared with"):
        deployed(v1=1, judged=("v1",))
    with pytest.raises(ValueError, match="v2 has a judge and nothing to be compared with"):
        deployed(v1=0, v2=1)
    with pytest.raises(ValueError, match="compares attempts at one task with each other"):
        judge_of(JudgeTable(use="canary-test/rank-v1", plugins=(plugin,)))


def deployed(judged: tuple[str, ...] = ("v2",), **weights: float) -> Deployment:
    table = TABLE.model_dump()
    versions = {v: {"model": f"runs/{v}", "weight": w, **({"judge": table} if v in judged else {})} for v, w in weights.items()}
    return Deployment.model_validate({"models": {"m": {"versions": versions}}})


def test_a_rollback_is_said_written_down_and_outlives_the_deployment(tmp_path: Path) -> None:
    shop, said, file = Shop(), list[str](), rollbacks_file(tmp_path / "d.toml")
    wanted, found = deployed(v1=95, v2=5), Judgement("m:v2", "m:v1", "rolled back", 30, 12, 28, 4.1, 0.05)
    deployer = Deployer(shop, said.append, Rollbacks(file))
    deployer.turn(wanted)
    for name in shop.begun:
        shop.comes_up(name)
    deployer.turn(wanted)
    assert canaries(shop.routes) == {"m:v2": Canary("m", "m:v1", TABLE)}
    shop.judged = {"m:v2": found}
    for _ in range(3):
        deployer.turn(wanted)
    assert shop.routes == {"m": (VersionShare("v1", 95), VersionShare("v2", 0, judge=TABLE))} and canaries(shop.routes) == {}
    assert said.count(found.line) == 1 and said[-1] == "m: v1 100.0%, v2 0.0%"
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (row["version"], row["model"], row["compared_with"]) == ("m:v2", "runs/v2", "m:v1")
    assert (row["answers_of_each"], row["passed"], row["passed_of_the_other"], row["error"]) == (30, 12, 28, 0.05)

    shop, said = Shop(), []
    again = Deployer(shop, said.append, Rollbacks(file))
    again.turn(wanted)
    for name in shop.begun:
        shop.comes_up(name)
    again.turn(wanted)
    assert shop.routes["m"][1].weight == 0
    assert any(line.startswith(f"m:v2 was rolled back before ({file})") for line in said)
    taken_out = deployed(v1=95, v2=5, judged=())
    again.check(taken_out, wanted)
    again.turn(taken_out)
    assert shop.routes["m"][1] == VersionShare("v2", 5), "somebody knows better"
    changed = wanted.model_copy(deep=True)
    judge = changed.models["m"].versions["v2"].judge
    assert judge is not None
    object.__setattr__(judge, "error", 0.5)
    with pytest.raises(ValueError, match="runs with another judge"):
        again.check(changed, wanted)


def test_a_judge_that_is_off_is_said_once() -> None:
    shop, said = Shop(), list[str]()
    deployer, wanted = Deployer(shop, said.append), deployed(v1=95, v2=5)
    off = Judgement("m:v2", "m:v1", "off", 3, 2, 3, 0.1, 0.05, "its judge failed 20 times in a row, last: gone")
    shop.judged = {"m:v2": off}
    deployer.turn(wanted)
    deployer.turn(wanted)
    assert said.count(off.line) == 1
