"""The models that runs made, as the pages list them: a real checkpoint, one of elsewhere, and what cannot be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model

from burnish.inspector.database import Database
from burnish.inspector.models import lineage, models_of
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.bundle import write_bundle
from burnish.trainer.models.checkpoints import JOURNAL, CheckpointRecord, list_checkpoints, refuse_promotion
from burnish.trainer.models.manifest import Ancestor, Manifest, read_manifest

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints: `sft-5`, whose model is a whole one, and `rft-2` of a model without a manifest, which was refused."""
    model = tiny_model(tmp_path / "model")
    made = recipe(model, "burnish/QualityInspection-v0", max_turns=3)
    folder = stored(made, played(made, seeded(1), INSPECTS), tmp_path / "runs" / "models-1")
    for name, phase, step in (("sft-5", "sft", 5), ("rft-2", "rft", 2)):
        shutil.copytree(model, folder / "checkpoints" / name / "model")
        record = CheckpointRecord(phase=phase, step=step, final=True, metrics={"reward": 0.5}, created_at=datetime(2026, 1, 1, tzinfo=UTC))
        with (folder / JOURNAL).open("a") as journal:
            journal.write(record.model_dump_json() + "\n")
    refuse_promotion(folder, list_checkpoints(folder)[-1], f"arithmetic fell by 9 points {HOSTILE}")
    (folder / "checkpoints" / "rft-2" / "model" / "burnish.json").unlink()
    return folder


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with TestClient(pages(run.parent), base_url="http://127.0.0.1:8266") as client:
        yield client


def test_a_run_lists_its_checkpoints_the_latest_first(run: Path) -> None:
    rft, sft = models_of("models-1", run)
    manifest = read_manifest(run / "checkpoints" / "sft-5" / "model")
    assert (sft.name, sft.stage, sft.parameters, sft.digest) == ("sft-5", manifest.stage, manifest.parameters, manifest.digest)
    assert (rft.name, rft.stage, rft.digest, rft.metrics) == ("rft-2", "", "", {"reward": 0.5})
    assert rft.refused.startswith("arithmetic fell") and rft.when == "2026-01-01 00:00 UTC"


def test_a_checkpoint_whose_folder_is_gone_is_named_beside_the_others(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "rft-2")
    rft, sft = models_of("models-1", run)
    assert (rft.name, rft.problem) == ("rft-2", "its folder is gone") and sft.stage and not sft.problem


def test_a_lineage_names_each_model_once_even_where_it_claims_to_descend_from_itself() -> None:
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    ancestors = (Ancestor(digest=a, name="nano", stage="none", parents=(b,)), Ancestor(digest=b, name="sft-5", stage="sft", parents=(a, c)))
    base = Ancestor(digest=c, name="other", stage="none")
    manifest = Manifest(
        name="x", stage="rft", source="s", architecture="A", parameters=1, files={}, parents=(b,), lineage=(*ancestors, base),
        created_by="burnish", created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert lineage(manifest) == ("sft-5", "nano", "other")


def test_the_pages_show_them(client: TestClient) -> None:
    for path in ("/rollouts/-/models", "/rollouts/models-1"):
        page = client.get(path).text
        assert "sft-5" in page and "not promoted" in page and "reward 0.5" in page and HOSTILE not in page
    assert 'href="/rollouts/-/models"' in client.get("/rollouts").text


def test_what_a_checkpoint_is_worth_is_shown_and_whatever_else_was_measured_is_folded(client: TestClient, run: Path) -> None:
    measured = {"learner/grad_norm": 0.5, "loss": 0.25, "success": 0.75, HOSTILE: 1.0, **{f"episode/m{i}": 0.0 for i in range(40)}}
    record = CheckpointRecord(phase="rft", step=4, final=False, metrics=measured, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    with (run / JOURNAL).open("a") as journal:
        journal.write(record.model_dump_json() + "\n")
    shutil.copytree(run / "checkpoints" / "rft-2" / "model", run / "checkpoints" / "rft-4" / "model")
    for path in ("/rollouts/-/models", "/rollouts/models-1"):
        page = client.get(path).text
        row = page[page.index("<td>rft-4") :].partition("</tr>")[0]
        shown, _, folded = row.partition("<details>")
        assert re.findall('class="chip">([^<]*)<', shown) == ["success 0.75", "loss 0.25"]
        assert "<summary>42 more<" in folded and folded.count('class="chip"') == 42 and HOSTILE not in page


@pytest.mark.parametrize("broken", ["journal", "manifest"])
def test_what_cannot_be_read_is_said_and_the_rest_is_shown(client: TestClient, run: Path, broken: str) -> None:
    if broken == "journal":
        (run / JOURNAL).write_text("no json\n")
    else:
        (run / "checkpoints" / "sft-5" / "model" / "burnish.json").write_text(json.dumps({"format": 99}))
    page = client.get("/rollouts/-/models")
    assert page.status_code == 200 and "cannot be read" in page.text
    assert ("rft-2" in page.text) == (broken == "manifest")
    assert client.get("/rollouts/models-1").status_code == 200


def test_a_bundle_has_them(run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "bundle", 10, Database())
    assert "sft-5" in (tmp_path / "bundle" / "models.html").read_text()


def manifest_file(run: Path) -> Path:
    return run / "checkpoints" / "sft-5" / "model" / "burnish.json"


def test_a_count_of_parameters_that_no_float_holds_leaves_the_page_whole(run: Path, client: TestClient) -> None:
    file = manifest_file(run)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parameters": 10**400}))
    page = client.get("/rollouts/-/models")
    assert page.status_code == 200 and "cannot be read" in page.text and "parameters" in page.text


def test_a_manifest_is_a_file_of_its_own_folder_and_no_larger_than_any_is(run: Path, tmp_path: Path) -> None:
    file = manifest_file(run)
    elsewhere = file.replace(tmp_path / "elsewhere.json")
    file.symlink_to(elsewhere)
    assert "leads out of the folder" in models_of("models-1", run)[1].problem
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(5 << 20)
    assert "is larger than 4 MiB" in models_of("models-1", run)[1].problem
