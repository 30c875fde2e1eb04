"""A bundle and a drift: the same pages as files, which hold what they say, lead nowhere else, and keep hostile text still."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_pages import HOSTILE, NAME, Elements, accounted, alarm, alarmed, evaluated
from tests.unit.test_inspector_pages import root as root
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Reward
from burnish.inspector.comparing import MOST
from burnish.inspector.database import Database
from burnish.inspector.drift import Drift, Move, RunMoment, drift_between
from burnish.inspector.library import Library
from burnish.inspector.pages import bundle
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.bundle import Bundled, write_bundle
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import EvaluationRecord
from burnish.run.folder import RunFolder

pytestmark = pytest.mark.unit

FIRST, LAST = Moment("rft", 0, "heldout", "sampled"), Moment("rft", 2, "heldout", "sampled")
PLACES = [f"nano-20260101-000000/rft.00000{step}.heldout.sampled" for step in (0, 2)]


@pytest.fixture
def run(root: Path) -> Path:
    """The run of hostile episodes, with alarms, an account of time and two evaluations: of three tasks one got better and one worse."""
    run = root / "nano-20260101-000000"
    accounted(run, 1, (3.0, 1.0, 0.5, 1.5), **{"learner/staleness_mean": 0.5, "learner/mismatch_kl": 1e-7})
    alarmed(run, *(alarm(step, text=f"the answers are all alike {'x' * 300}") for step in range(1, 8)))
    for moment, totals in ((FIRST, (0.0, 1.0, 0.5)), (LAST, (1.0, 0.25, 0.5))):
        played = [episode(number, sample, Reward(total), HOSTILE) for number, total in enumerate(totals) for sample in (0, 1)]
        stored(run / "episodes", *played, moment=moment)
        RunFolder(run).log_evaluation(EvaluationRecord(phase="rft", step=moment.step, result=evaluated(*totals)))
    return run


@pytest.fixture
def db() -> Iterator[Database]:
    made = Database()
    yield made
    made.close()


def files(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text() for file in sorted(folder.rglob("*.html"))}


def test_a_bundle_has_every_page_and_every_link_leads_to_a_file_of_it(run: Path, tmp_path: Path, db: Database) -> None:
    target = tmp_path / "sent" / "bundle"
    (run / "report.html").write_text("<b>as it ended</b>")
    assert write_bundle(run, target, 100, db) == Bundled(1, 15, 15)
    made = files(target)
    of_run = f"runs/{run.name}"
    assert 'srcdoc="&lt;b&gt;as it ended&lt;/b&gt;' in made[f"{of_run}/report.html"] and 'href="../../runs/' in made[f"{of_run}/index.html"]
    assert {"index.html", f"{of_run}/index.html", f"{of_run}/steps.html", f"{of_run}/drift-sampled.html"} <= made.keys()
    assert sum(bool(re.search(r"/\d+\.html$", name)) for name in made) == 15
    for name, page in made.items():
        for tag, attributes in Elements(page).found:
            for kind in ("href", "src"):
                address = urlsplit(attributes.get(kind) or "")
                assert not address.scheme and not address.netloc and not address.query, (name, tag, attributes)
                there = (target / name).parent / unquote(address.path) if address.path else target / name
                assert there.resolve().is_relative_to(target) and there.is_file(), (name, address)
    assert list(tmp_path.glob("sent/.*")) == []
    assert sum("What the environment knew" in page for page in made.values()) == 12  # as the evaluated episodes have it


def test_a_bundle_has_the_alarms_of_a_run_and_its_account_of_time(run: Path, tmp_path: Path, db: Database) -> None:
    write_bundle(run, tmp_path / "bundle", 100, db)
    page = files(tmp_path / "bundle")[f"runs/{run.name}/index.html"]
    assert page.count("the answers are all alike") == 7 and "2 earlier alarms" in page and "Where the time went" in page


def test_a_bundle_keeps_hostile_text_still_under_a_policy_of_its_own(run: Path, tmp_path: Path, db: Database) -> None:
    write_bundle(run, tmp_path / "bundle", 100, db)
    for name, page in files(tmp_path / "bundle").items():
        elements = Elements(page).found
        (policy,) = (attributes["content"] for tag, attributes in elements if attributes.get("http-equiv") == "Content-Security-Policy")
        assert policy == bundle.POLICY and "default-src 'none'" in policy and "unsafe" not in policy
        before = page.partition("Content-Security-Policy")[0]
        assert "<link" not in before and "<script" not in before, "what comes before a policy is not held to it"
        assert [unquote(attributes["src"] or "") for tag, attributes in elements if tag == "script"] == [
            "../" * name.count("/") + "static/page.js"
        ]
        assert not [tag for tag, _ in elements if tag in {"img", "iframe", "object", "embed", "style", "base", "form"}], name
        assert not [key for _, attributes in elements for key in attributes if key.startswith("on") or key == "style"]
        assert not re.search("[\x1b\u202e\ud800-\udfff]", page)


def test_what_is_beyond_the_limit_is_left_out_and_every_page_says_so(
    run: Path, tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LISTED", 2)
    assert write_bundle(run, tmp_path / "bundle", 4, db) == Bundled(1, 4, 15)
    made = files(tmp_path / "bundle")
    assert all("the lists of 2 of 3 steps and evaluations, and 4 of 15 rollouts: the latest" in page for page in made.values())
    of_run = f"runs/{run.name}"
    assert "drift-sampled.html" in made[f"{of_run}/index.html"], "the first evaluation is in no list"
    drift = made[f"{of_run}/drift-sampled.html"]
    assert f"From {run.name}, rft step 0, held out, sampled to {run.name}, rft step 2, held out, sampled." in drift
    last = f"runs/{run.name}/rft.000002.heldout.sampled"
    assert sorted(name for name in made if re.search(r"/\d+\.html$", name)) == [f"{last}/{i}.html" for i in range(4)]
    assert len(re.findall(r"<tr data-row><td><a", made[f"{last}/index.html"])) == 4, "episodes without a page are no links"


def test_a_list_that_is_cut_says_so_and_its_step_is_told_whole(
    run: Path, tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = episode(7, 0, Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged"))
    played = [episode(number, sample, Reward(float(sample))) for number in range(4) for sample in (0, 1)]
    stored(run / "episodes", *played, failed, moment=Moment("rft", 3, "train", "sampled"))
    monkeypatch.setattr(bundle, "TABLE", 4)
    write_bundle(run, tmp_path / "bundle", 1000, db)
    made = files(tmp_path / "bundle")
    row = next(row for row in made[f"runs/{run.name}/steps.html"].split("<tr ") if "rft.000003.train" in row)
    assert re.findall(r"<td>([^<]*)</td>", row) == ["3", "training", "9", "0.5", "1"]
    listed = made[f"runs/{run.name}/rft.000003.train.sampled/index.html"]
    assert "9 episodes, 1 to 4" in listed and "it has the 4 of the lowest reward" in listed
    assert "2 attempts" in made[f"runs/{run.name}/rft.000003.train.sampled/0.html"], "beside the one that is not in the list"
    assert "The list is cut" not in made[f"runs/{run.name}/rft.000001.train.sampled/index.html"]


def test_several_runs_are_bundled_side_by_side(root: Path, run: Path, tmp_path: Path, db: Database) -> None:
    shutil.copytree(run, root / "nano & <b> 100%25")
    assert write_bundle(root, tmp_path / "bundle", 100, db).runs == 2
    made = files(tmp_path / "bundle")
    assert "2 runs side by side" in made["compare.html"] and "compare.html" in made["index.html"]
    assert "runs/nano & <b> 100%25/steps.html" in made


def test_a_page_that_one_run_has_no_use_for_is_anothers(root: Path, run: Path, tmp_path: Path, db: Database) -> None:
    shutil.copytree(run, root / "empty", ignore=shutil.ignore_patterns("episodes"))
    assert write_bundle(root, tmp_path / "bundle", 12, db) == Bundled(2, 12, 15)


def test_seven_runs_have_a_page_each_at_least_and_every_page_says_that_they_are_not_compared(
    root: Path, run: Path, tmp_path: Path, db: Database
) -> None:
    for number in range(MOST):
        shutil.copytree(run, root / f"run-{number}")
    assert write_bundle(root, tmp_path / "bundle", 5, db) == Bundled(7, 7, 7 * 15)
    made = files(tmp_path / "bundle")
    assert len({name.split("/")[1] for name in made if re.search(r"/\d+\.html$", name)}) == 7
    assert "compare.html" not in made and all("The runs are not compared: that is for 6 at most." in page for page in made.values())


@pytest.mark.parametrize(
    ("rollouts", "most", "shares"),
    [([0, 500, 10], 100, [0, 90, 10]), ([3, 3], 100, [3, 3]), ([9, 9, 9], 8, [2, 3, 3]), ([0, 0], 1, [0, 0]), ([9, 0, 9], 1, [1, 0, 2])],
)
def test_the_pages_are_shared_by_the_runs(rollouts: list[int], most: int, shares: list[int]) -> None:
    assert bundle._shares(rollouts, most) == shares


def test_a_bundle_is_written_whole_into_a_new_folder_or_not_at_all(run: Path, tmp_path: Path, db: Database) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="there is there already"):
        write_bundle(run, tmp_path / "there", 10, db)
    with pytest.raises(ValueError, match="is no run folder, and holds none"):
        write_bundle(tmp_path / "there", tmp_path / "new", 10, db)
    (run / "metrics.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:1"):
        write_bundle(run, tmp_path / "new", 10, db)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs", "secret", "there"]


# --------------------------------------------------------------------------------------------------------------------------------- drift


def test_tasks_that_moved_are_named_the_most_first(run: Path) -> None:
    place = RunMoment(run.name, FIRST), RunMoment(run.name, LAST)
    found = drift_between(*place, {run.name: run}, {run.name: Library(run / "episodes")})
    assert [(move.task, move.change, move.attempts) for move in found.better] == [("train-0", 1.0, (2, 2))]
    assert [(move.task, move.change) for move in found.worse] == [("train-1", -0.75)]
    assert (found.mean_before, found.alike, found.unpaired) == (0.5, True, 0)
    assert found.change == pytest.approx(1 / 12)
    assert found.interval == pytest.approx((1 / 12 - 2.181004, 1 / 12 + 2.181004), abs=1e-4)  # 4.302653 * 0.877971 / sqrt(3)


def test_the_numbers_of_a_drift_take_a_sum_over_its_tasks_each() -> None:
    added = 0

    class Counted(float):
        def __sub__(self, other: float) -> float:
            nonlocal added
            added += 1
            return float(self) - other

    at = RunMoment("a", FIRST)
    found = Drift(at, at, tuple(Move(str(i), 0.0, Counted(i % 7 / 7), (1, 1)) for i in range(500)), 0, True)
    assert [found.interval for _ in range(3)] == [found.interval] * 3 and found.change == pytest.approx(0.4269, abs=1e-4)
    assert added == 500


def test_the_page_of_a_drift_shows_what_was_said_then_and_now(run: Path, root: Path) -> None:
    with TestClient(pages(root)) as client:
        assert "/rollouts/-/drift?before=" in client.get(NAME).text
        asked = {"before": PLACES[0], "after": PLACES[1]}
        page = client.get("/rollouts/-/drift", params=asked).text
        assert "from 0.5 to 0.5833" in page and "1 improved, 1 regressed" in page
        assert page.index("Most regressed") < page.index("train-1") < page.index("Most improved") < page.index("train-0")
        one = client.get("/rollouts/-/drift", params={**asked, "task": "train-0"}).text
        assert one.count("What was said in attempt 0") == 2 and "<script>alert" not in one
        assert client.get("/rollouts/-/drift", params={**asked, "task": "</pre>"}).text.count("was not played here") == 2


@pytest.mark.parametrize(
    "place", ["", "nano", "nano-20260101-000000/../x", "nano-20260101-000000/rft.000009.heldout.sampled", "a/b/" + PLACES[0]]
)
def test_moments_that_are_not_there_are_refused_in_a_line(run: Path, root: Path, place: str) -> None:
    with TestClient(pages(root)) as client:
        answer = client.get("/rollouts/-/drift", params={"before": place, "after": PLACES[1]})
        assert answer.status_code in {400, 410} and "Not here" in answer.text


def test_runs_of_other_tasks_are_not_taken_for_alike(run: Path, root: Path) -> None:
    other = root / "nano-20260102-000000"
    shutil.copytree(run, other)
    (other / "config.json").write_text(json.dumps({"name": "nano", "environment": "another/Env-v0"}))
    with TestClient(pages(root)) as client:
        asked = {"before": PLACES[0], "after": PLACES[1].replace("0101", "0102")}
        assert "an id may not name the same task" in client.get("/rollouts/-/drift", params=asked).text
