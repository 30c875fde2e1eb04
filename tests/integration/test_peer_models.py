"""Whatever whoever wrote a model folder, or a package, can set in it is tried, field by field: none names code, a file outside its folder,
or an address to call."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.reaching import MARK, REFUSALS, Watch, burnish, json_changed, json_leaves, watching
from tests.unit.guard_policy import TOML

from burnish.guardrails.policy import load_policy
from burnish.rollout.tokenizer import load_tokenizer
from burnish.serving.canary.watch import Judgement
from burnish.serving.deployment import Deployer, State, VersionTable, read_deployment
from burnish.serving.package import POLICY, VERDICT, read_package, write_package
from burnish.serving.promotion import promote, servable_model
from burnish.serving.routes import Routes
from burnish.trainer.models.folder import check_model_folder
from burnish.trainer.models.importing import ModelSize, import_model, new_model
from burnish.trainer.models.manifest import RELEASE, file_sha256, read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with watching(tmp_path_factory.mktemp("outside")) as made:
        yield made


@pytest.fixture(scope="module")
def honest_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text"], folder, ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64))
    return folder


NAMES_ANOTHER = (
    "adapter", "_name_or_path", "base_model_name_or_path", "tokenizer_file", "tokenizer_class", "attn_implementation",
    "configuration_files",
)  # fmt: skip
"""Keys that no file of the honest model has, and by which one names something else."""
AUTO_MAP = {
    "auto_map": {
        "AutoConfig": f"{MARK}.Config", "AutoModelForCausalLM": f"{MARK}.Model", "AutoTokenizer": [f"{MARK}.Slow", f"{MARK}.Fast"],
    },
    "custom_pipelines": {"x": {"impl": f"{MARK}.Pipeline"}},
}  # fmt: skip


def test_no_field_of_a_model_folder_reaches_out(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    import_model(honest_model, tmp_path / "imported" / "honest")
    number = 0
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "burnish.json"):
        value = json.loads((honest_model / name).read_text())
        further = ((key, {**value, key: payload}) for payload in watch.payloads for key in NAMES_ANOTHER)
        for where, hostile_value in (*(case for payload in watch.payloads for case in json_changed(value, payload)), *further):
            folder, number = tmp_path / f"m{number}", number + 1
            shutil.copytree(honest_model, folder)
            (folder / name).write_text(json.dumps(hostile_value))
            with watch.over(f"{name} {where}"):
                read_manifest(folder)
                check_model_folder(folder)
                import_model(folder, tmp_path / "imported" / f"m{number}")
            shutil.rmtree(folder)


def test_code_that_comes_with_a_model_is_neither_run_nor_passed_on(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    folder = tmp_path / "with-code"
    shutil.copytree(honest_model, folder)
    (folder / "burnish.json").unlink()  # as others write their folders; with it, the import would be refused for the change alone
    (folder / f"{MARK}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{watch.folder}/{MARK}", "peft_type": "LORA"}))
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **AUTO_MAP}))
    with watch.over("a model with an adapter"), pytest.raises(ValueError, match="holds an adapter"):
        import_model(folder, tmp_path / "imported")
    (folder / "adapter_config.json").unlink()
    with watch.over("a model with code"):
        import_model(folder, tmp_path / "imported")
    assert not (tmp_path / "ran").exists()
    for file in (tmp_path / "imported").iterdir():
        assert MARK.encode() not in file.read_bytes(), f"{file.name} passes on where the code is"


def test_no_file_of_a_model_folder_leads_out_of_it(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    weights = watch.folder / f"{MARK}.safetensors"
    shutil.copyfile(honest_model / "model.safetensors", weights)
    for name in ("chat_template.jinja", "tokenizer.json", "model.safetensors", "config.json"):
        folder = tmp_path / name
        shutil.copytree(honest_model, folder)
        shutil.move(folder / name, watch.folder / f"{MARK}-{name}")
        (folder / name).symlink_to(watch.folder / f"{MARK}-{name}")
        with pytest.raises(ValueError, match="is a link that leads out of the folder"):
            check_model_folder(folder)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        folder = tmp_path / index
        shutil.copytree(honest_model, folder)
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": str(weights), "x": f"../{MARK}.bin"}}))
        with watch.over(index), pytest.raises(ValueError, match=r"names the file|lacks the weight file"):
            import_model(folder, tmp_path / f"{index}-imported")


def test_no_field_of_a_tokenizer_reaches_out(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    """`tokenizer.json` in its first levels, where it says what it is made of, and every key that transformers takes for a file."""
    keys = (
        "fast_tokenizer_files",
        "vocab_file",
        "merges_file",
        "tokenizer_file",
        "spm_file",
        "gguf_file",
        "chat_template_file",
        "init_inputs",
    )
    number = 0
    for payload in (f"{watch.folder}/{MARK}.txt", f"../{MARK}.txt", f"{MARK}:run"):
        for file, key in [(file, key) for file in ("tokenizer_config.json", "special_tokens_map.json") for key in keys]:
            folder, number = tmp_path / f"k{number}", number + 1
            shutil.copytree(honest_model, folder)
            said = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
            (folder / file).write_text(json.dumps({**said, key: [payload] if key.endswith(("files", "inputs")) else payload}))
            with watch.over(f"{file} {key}"):
                load_tokenizer(folder)
        value = json.loads((honest_model / "tokenizer.json").read_text())
        for path in [path for path in json_leaves(value) if 1 <= len(path) <= 3 and "vocab" not in path[:-1] and "merges" not in path[:-1]]:
            copy = json.loads(json.dumps(value))
            here = copy
            for step in path[:-1]:
                here = here[step]
            here[path[-1]] = payload
            folder, number = tmp_path / f"k{number}", number + 1
            shutil.copytree(honest_model, folder)
            (folder / "tokenizer.json").write_text(json.dumps(copy))
            with watch.over(f"tokenizer.json {path}"):
                load_tokenizer(folder)
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def package(honest_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "policy.toml").write_text(TOML)
    write_package(honest_model, folder / "tiny", str(folder / "policy.toml"))
    return folder / "tiny"


def sealed(folder: Path) -> None:
    """Bring the verdict of a package in line with the files beside it, as whoever made the package would."""
    file = folder / RELEASE / VERDICT
    said = json.loads(file.read_text())
    said["files"] = {one.name: file_sha256(one) for one in sorted((folder / RELEASE).iterdir()) if one != file}
    with contextlib.suppress(ValueError):
        said["policy"] = load_policy(folder / RELEASE / POLICY).id
    file.write_text(json.dumps(said))


def ship(folder: Path, deployment: Path) -> None:
    """What is done with a package before it is served: it is read, promoted into a deployment file, and found there."""
    for step in (
        lambda: read_package(folder),
        lambda: promote(folder, deployment, "m", "v1", 1.0, force="a test"),
        lambda: servable_model(VersionTable(model=str(folder), forced="a test"), None),
        lambda: burnish("models", "show", folder),
    ):
        with contextlib.suppress(*REFUSALS):
            step()


def test_no_field_of_a_package_reaches_out(package: Path, watch: Watch, tmp_path: Path) -> None:
    number = 0
    ship(package, tmp_path / "honest.toml")
    assert read_deployment(tmp_path / "honest.toml").served()["m:v1"].model == str(package)
    for name in (f"{RELEASE}/{VERDICT}", "burnish.json"):
        for turn in range(len(list(json_changed(json.loads((package / name).read_text()), "")))):
            where, value = list(json_changed(json.loads((package / name).read_text()), watch.payloads[turn % len(watch.payloads)]))[turn]
            folder, number = tmp_path / f"p{number}", number + 1
            shutil.copytree(package, folder)
            (folder / name).write_text(json.dumps(value))
            with watch.over(f"{name} {where}"):
                ship(folder, folder.with_suffix(".toml"))
            shutil.rmtree(folder)
    for payload in watch.payloads:
        for use in (payload, "burnish/verifier-v1"):
            folder, number = tmp_path / f"p{number}", number + 1
            shutil.copytree(package, folder)
            detector = {"name": "elsewhere", "category": "weapons", "use": use, "args": {"address": payload, "file": payload}}
            with (folder / RELEASE / POLICY).open("a") as policy:
                policy.write("\n[[detectors]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in detector.items()))
            sealed(folder)
            with watch.over(f"policy {use} {payload}"):
                ship(folder, folder.with_suffix(".toml"))


def test_no_file_of_a_package_leads_out_of_it(package: Path, watch: Watch, tmp_path: Path) -> None:
    for name in (RELEASE, f"{RELEASE}/{POLICY}", f"{RELEASE}/{VERDICT}", "burnish.json", "model.safetensors"):
        folder, outside = tmp_path / name.replace("/", "-"), watch.folder / f"{MARK}-{name.replace('/', '-')}"
        shutil.copytree(package, folder)
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)
        with watch.over(name):
            ship(folder, folder.with_suffix(".toml"))
        with pytest.raises(ValueError, match=r"link|no plain file"):
            read_package(folder)


class Nobody:
    """A fleet that starts nothing."""

    def start(self, name: str, table: VersionTable) -> None:
        pass

    def state(self, name: str) -> tuple[State, str]:
        return "ready", ""

    def stop(self, name: str) -> None:
        pass

    def route(self, routes: Routes, started: bool) -> None:
        pass

    def judgements(self) -> dict[str, Judgement]:
        return {}


def test_a_deployment_file_is_read_without_reaching_out(watch: Watch, tmp_path: Path) -> None:
    said = {
        "service": {"port": 8000, "keys_file": "k", "policy": "p", "plugins": ["x.py"], "audit_file": "a", "host": "127.0.0.1"},
        "models": {"m": {"versions": {"v1": {"model": "x", "weight": 1.0, "forced": "y"}}}},
    }
    file = tmp_path / "deployment.toml"
    for payload in watch.payloads:
        for where, value in json_changed(said, payload):
            file.write_text("".join(f"{json.dumps(key)} = {toml(one)}\n" for key, one in value.items()))
            with watch.over(f"deployment {where}"):
                read = read_deployment(file)
                deployer = Deployer(Nobody(), lambda line: None)
                deployer.check(read, None)
                deployer.turn(read)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)
