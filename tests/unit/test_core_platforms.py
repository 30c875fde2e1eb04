"""Platforms: which tables of a recipe count where, who takes which GPU, and what is refused before anything starts."""

from __future__ import annotations

import io
import json
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from burnish.cluster import request_resources
from burnish.envs.builtin.inspection.corpus import vocabulary
from burnish.envs.contract import ENVS
from burnish.reach import check_reach, unreached
from burnish.recipe.load import config_data, config_from_data, load_config
from burnish.recipe.machine import Machine, this_machine
from burnish.recipe.placement import Placement, cluster_problem, fits, may_hold_engine
from burnish.recipe.plan import Plan, make_plan, print_plan
from burnish.recipe.platforms import Platform, laid_over
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rewards.plugin import REWARDS
from burnish.rewards.remote.service import VERIFIERS
from burnish.rpc.loopback import this_loopback
from burnish.trainer.learner.config import LoRAConfig
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.models.tokenizer import CHAT_TEMPLATE, MESSAGE_END, MESSAGE_START

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted([*ROOT.glob("recipes/*.toml"), *ROOT.glob("examples/**/recipe.toml")])
SEVEN_B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
BASE = {"name": "p", "model": "m", "environment": "burnish/Arithmetic-v0"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what the machine has: `machine(gpus=2)`."""

    def has(gpus: int = 0, bfloat16: bool = True, gpu_mb: int = 0) -> None:
        monkeypatch.setattr("burnish.recipe.machine.this_machine", lambda: Machine(gpus, bfloat16, gpu_mb))

    has()
    return has


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(vocabulary(0, 300), folder, ModelSize(hidden=64, layers=1, heads=2, intermediate=32, vocab_size=1024, max_position=1024))
    return folder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no example has registered anything, whatever tests before this one did; and so it is left behind."""
    tables: list[dict[str, Any]] = [table for registry in (ENVS, REWARDS, VERIFIERS) for table in (registry._loaded, registry._sources)]
    before = [{id: table.pop(id) for id in list(table) if id.startswith("first/")} for table in tables]
    monkeypatch.delitem(sys.modules, "examples.first.orders", raising=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    sys.modules.pop("examples.first.orders", None)
    for table, kept in zip(tables, before, strict=True):
        for id in [id for id in table if id.startswith("first/")]:
            del table[id]
        table.update(kept)


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """A model of 7 B parameters, without its weights."""
    folder = tmp_path / "seven-b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SEVEN_B))
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.add_special_tokens([MESSAGE_START, MESSAGE_END])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=MESSAGE_END, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


class Asked:
    """Stands where RLlib's config does, and keeps what it is asked for."""

    def __init__(self, placement: Placement) -> None:
        self.runners: dict[str, Any] = {}
        self.learner: dict[str, Any] = {}
        request_resources(self, placement)

    def env_runners(self, **settings: Any) -> None:
        self.runners = settings

    def learners(self, **settings: Any) -> None:
        self.learner = settings


def recipe(platform: Platform = "gpu", **more: Any) -> ResolvedRun:
    return resolve(config_from_data({**BASE, "platform": platform, **more}))


def refused(**more: Any) -> list[str]:
    with pytest.raises(ValueError) as caught:
        resolve(config_from_data({**BASE, **more}, "r.toml"))
    return str(caught.value).splitlines()


def shown(plan: Plan) -> str:
    screen = io.StringIO()
    print_plan(plan, Console(width=240, file=screen))
    return screen.getvalue()


# The machine


@pytest.mark.parametrize(("build", "gpus"), [("2.13.0+cpu", 0), ("2.13.0", 2), ("2.13.0+cu130", 2)])
def test_torch_is_asked_for_gpus_only_where_it_is_built_for_them(monkeypatch: pytest.MonkeyPatch, build: str, gpus: int) -> None:
    torch = types.ModuleType("torch")
    memories = (80 * 10**9, 40 * 10**9)
    cuda = types.SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda i: types.SimpleNamespace(total_memory=memories[i]))
    setattr(torch, "cuda", cuda)  # noqa: B010
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr("burnish.recipe.machine.version", lambda name: build)
    assert (this_machine().gpus, this_machine().gpu_mb) == (gpus, 40_000 if gpus else 0)


@pytest.mark.parametrize(("flags", "fit"), [("sse avx2 fma", False), ("avx2 avx512f", True), ("avx2 amx_bf16", True)])
def test_a_cpu_is_fit_for_bfloat16_by_its_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, fit: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: avx512f_is_no_flag_here\n")
    monkeypatch.setattr("burnish.recipe.machine.CPU_INFO", tmp_path / "cpuinfo")
    assert this_machine().bfloat16 == fit


# Every recipe that ships, on both platforms


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_recipe_plans_on_both_platforms(
    file: Path, platform: Platform, tiny: Path, machine: Callable[..., None], fresh: None
) -> None:
    machine(gpus=1)
    run = resolve(load_config(file, [f"model={tiny}"], platform=platform))
    plan = make_plan(run, need_weights=True)
    asked = Asked(run.placement)
    assert asked.runners["num_env_runners"] == 1
    assert {run.engine.resolved_device, run.learner.device} == {"cuda" if platform == "gpu" else "cpu"}
    if platform == "cpu":
        assert (asked.runners["num_gpus_per_env_runner"], asked.learner["num_gpus_per_learner"]) == (0, 0)
        assert (run.engine.resolved_dtype, run.engine.gpu_memory_fraction, plan.seconds is not None) == ("float32", None, True)
    else:  # one GPU is enough for each of them
        assert (asked.runners["num_gpus_per_env_runner"], asked.learner["num_gpus_per_learner"]) == (0.5, 0.5)
        assert (run.engine.resolved_dtype, run.engine.gpu_memory_fraction, plan.seconds) == ("bfloat16", 0.45, None)
        assert (run.engine.threads, run.engine.kv_cache_mb) == (None, None)
        assert "learner: 0.5 of a GPU" in shown(plan)


def test_a_model_of_seven_billion_parameters_on_two_gpus(seven_b: Path, machine: Callable[..., None]) -> None:
    machine(gpus=2, gpu_mb=80_000)
    learner: dict[str, Any] = {"dtype": "bfloat16", "activation_checkpointing": True, "microbatch_tokens": 8192}
    engine = {"max_context": 2048, "max_num_seqs": 32}
    whole = make_plan(recipe(model=str(seven_b), engine=engine, learner=learner))
    assert whole.run.placement.gpus == 2
    assert whole.run.placement.lines() == ["learner: 1 GPU", "1 engine: 1 GPU, tensor parallel 1"]
    assert whole.memory_mb == {"learner's GPU": 127812, "each GPU of an engine": 47837}
    too_small = "learner's GPU is expected to need 127.8 GB and has 80.0: change learner.lora, resources.learners or"
    assert [line[: len(too_small)] for line in whole.warnings if "expected to need" in line] == [too_small]
    adapters = make_plan(recipe(model=str(seven_b), engine=engine, learner={**learner, "lora": {}}))
    assert adapters.memory_mb["learner's GPU"] < 80_000 and not any("expected to need" in line for line in adapters.warnings)


def test_a_share_of_a_gpu_has_that_share_of_its_memory(seven_b: Path, machine: Callable[..., None]) -> None:
    machine(gpus=1, gpu_mb=80_000)
    plan = make_plan(recipe(model=str(seven_b), engine={"max_context": 2048, "max_num_seqs": 32}, learner={"lora": {}}))
    assert any(line.startswith("each GPU of an engine is expected to need 47.8 GB and has 40.0: change engine") for line in plan.warnings)
    machine(gpus=1)  # how much it has is not known
    assert not any("expected to need" in line for line in make_plan(plan.run).warnings)


def test_three_gpus_of_a_cluster_for_a_model_of_seven_billion_parameters(seven_b: Path, machine: Callable[..., None]) -> None:
    run = recipe(
        model=str(seven_b),
        engine={"tensor_parallel": 2, "max_context": 2048, "max_num_seqs": 32},
        learner={"dtype": "bfloat16", "activation_checkpointing": True, "microbatch_tokens": 8192},
        resources={"ray_address": "auto"},
    )
    plan = make_plan(run)
    asked = Asked(run.placement)
    assert (asked.runners["num_gpus_per_env_runner"], asked.learner["num_gpus_per_learner"]) == (2, 1)
    assert (run.engine.resolved_backend, run.placement.gpus) == ("vllm-async", 3)

    parameters = 32000 * 4096 * 2 + 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert plan.model.parameters == parameters == 6_738_415_616
    cache = 2 * 32 * 32 * 128 * 2 * 32 * 2048  # keys and values, layers, heads, numbers per head, bytes, sequences, tokens
    learner = (16 + 2) * parameters + 8192 * (4 * 32 * 4096 + 38 * 4096 + 8 * 11008) + 512 * 32000 * 14
    assert plan.memory_mb == {"learner's GPU": round(learner / 1e6), "each GPU of an engine": round((2 * parameters + cache) / 2 / 1e6)}

    text = shown(plan)
    (printed,) = re.findall(r"```\n(runs on .*?)```", (ROOT / "docs" / "gpus.md").read_text(), re.DOTALL)
    assert "learner: 1 GPU\n" in printed and "1 engine: 2 GPUs of one node, tensor parallel 2\n" in printed
    assert "expected, in GB: learner's GPU 127.8, each GPU of an engine 23.9" in printed
    assert all(line.strip() in text for line in printed.splitlines()), "what docs/gpus.md shows is what is printed"
    assert "has no weights: the sizes follow from its config.json, and a run needs them" in text
    with pytest.raises(ValueError, match="its weights are missing"):
        make_plan(run, need_weights=True)


@pytest.mark.parametrize(
    ("gpus", "more", "learner", "engine"),
    [
        (1, {}, 0.5, 0.5),
        (1, {"env_runners": 2}, 0.5, 0.25),
        (1, {"learner_gpus": 0.3, "engine_gpus": 0.7}, 0.3, 0.7),
        (2, {}, 1.0, 1.0),
        (1, {"ray_address": "auto"}, 1.0, 1.0),
    ],
)
def test_a_single_gpu_is_shared_and_several_are_not(
    machine: Callable[..., None], gpus: int, more: dict[str, Any], learner: float, engine: float
) -> None:
    machine(gpus=gpus)
    run = recipe(resources=more)
    assert (run.placement.learner_gpus, run.placement.engine_gpus) == (learner, engine)
    assert run.engine.gpu_memory_fraction == (None if engine == 1.0 else pytest.approx(0.9 * engine))


def test_the_recipe_of_the_page_reads_as_it_says(machine: Callable[..., None]) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "gpus.md").read_text(), re.DOTALL)
    cpu, gpu = (config_from_data({**tomllib.loads(text), "platform": platform}) for platform in ("cpu", "gpu"))
    assert (cpu.engine.threads, cpu.engine.max_num_seqs, cpu.engine.gpus, cpu.learner.dtype) == (2, 64, 1, "float32")
    assert (gpu.engine.threads, gpu.engine.max_num_seqs, gpu.engine.gpus, gpu.learner.dtype) == (None, 256, 2, "bfloat16")


# Which tables count


def test_a_platforms_tables_lie_over_the_recipes_own() -> None:
    data = {"engine": {"max_num_seqs": 8, "max_context": 512}, "gpu": {"engine": {"max_num_seqs": 256}, "learner": {"dtype": "bfloat16"}}}
    assert laid_over(data, "gpu") == {
        "engine": {"device": "cuda", "max_num_seqs": 256, "max_context": 512},
        "learner": {"device": "cuda", "dtype": "bfloat16"},
        "platform": "gpu",
    }
    assert laid_over(data, "cpu")["engine"] == {"device": "cpu", "max_num_seqs": 8, "max_context": 512}


def test_the_tables_of_the_page_on_learners_are_planned(seven_b: Path, machine: Callable[..., None]) -> None:
    *blocks, _ = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "learners.md").read_text(), re.DOTALL)
    tables = tomllib.loads("\n".join(blocks))
    run = resolve(config_from_data({**BASE, "platform": "gpu", "model": str(seven_b), "resources": {"ray_address": "auto"}, **tables}))
    assert run.placement.learners == 4
    assert run.learner.lora == LoRAConfig(rank=16, alpha=32, targets=("q_proj", "v_proj"))
    assert "4 learners: 1 GPU each" in shown(make_plan(run))


def test_the_phases_of_the_page_on_learners_train_what_it_says(tmp_path: Path, machine: Callable[..., None]) -> None:
    *_, block = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "learners.md").read_text(), re.DOTALL)
    tables = tomllib.loads(block)
    for phase in (one for one in tables["phases"] if "data" in one):
        (tmp_path / phase["data"]).touch()
        phase["data"] = str(tmp_path / phase["data"])
    run = resolve(config_from_data({**BASE, "platform": "gpu", "resources": {"ray_address": "auto"}, **tables}))
    found = [(phase.name, phase.lora.rank if phase.lora else None, phase.merges) for phase in run.phases]
    assert found == [("cpt", None, False), ("sft", 64, True), ("rft", 16, True)]


def test_the_recipe_of_the_page_on_weights_is_read() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "weights.md").read_text(), re.DOTALL)
    assert config_from_data(tomllib.loads(block)).engine.whole_weights_every == 50


def test_auto_is_gpu_where_torch_sees_one(machine: Callable[..., None]) -> None:
    tables = {"cpu": {"engine": {"threads": 2}}, "gpu": {"engine": {"gpu_memory_fraction": 0.5}}}
    assert config_from_data({**BASE, **tables}).engine.threads == 2
    machine(gpus=2)
    config = config_from_data({**BASE, **tables})
    assert (config.platform, config.engine.threads, config.engine.gpu_memory_fraction) == ("gpu", None, 0.5)
    assert config_from_data({**BASE, **tables, "platform": "cpu"}).platform == "cpu"


def test_the_command_lines_platform_counts_before_the_recipes(tmp_path: Path, machine: Callable[..., None]) -> None:
    file = tmp_path / "r.toml"
    file.write_text('name = "p"\nmodel = "m"\nenvironment = "a/B-v0"\nplatform = "gpu"\n')
    assert load_config(file).platform == "gpu"
    assert load_config(file, platform="cpu").platform == "cpu"
    assert load_config(file, ["platform=cpu"]).platform == "cpu"


def test_overrides_count_last_and_those_of_a_platform_within_it(tmp_path: Path, machine: Callable[..., None]) -> None:
    file = tmp_path / "r.toml"
    file.write_text('name = "p"\nmodel = "m"\nenvironment = "a/B-v0"\n[cpu.engine]\nmax_num_seqs = 8\n[gpu.engine]\nmax_num_seqs = 256\n')
    assert load_config(file, ["engine.max_num_seqs=3"]).engine.max_num_seqs == 3
    overrides = ["gpu.engine.max_num_seqs=99", "cpu.engine.max_num_seqs=9"]
    assert load_config(file, overrides).engine.max_num_seqs == 9
    assert load_config(file, overrides, platform="gpu").engine.max_num_seqs == 99


def test_a_run_folder_keeps_the_platform_it_began_on(tmp_path: Path, machine: Callable[..., None]) -> None:
    machine(gpus=1)
    config = config_from_data({**BASE, "gpu": {"resources": {"learner_gpus": 0.5, "engine_gpus": 0.25}}})
    (tmp_path / "config.json").write_text(json.dumps(config_data(config)))
    machine(gpus=0)
    assert load_config(tmp_path) == config
    assert load_config(tmp_path).platform == "gpu"


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ({"cpu": {"engine": {"thread": 2}}}, ["r.toml: cpu.engine.thread: unknown key; did you mean 'threads'?"]),
        ({"gpu": {"engine": {"tensor_paralel": 2}}}, ["r.toml: gpu.engine.tensor_paralel: unknown key; did you mean 'tensor_parallel'?"]),
        (
            {"gpu": {"learner": {"dtype": "bf16"}}},
            ["r.toml: gpu.learner.dtype: 'bf16' must be 'float32' or 'bfloat16'; did you mean 'bfloat16'?"],
        ),
        (
            {"gpu": {"rft": {"steps": 2}}},
            ["r.toml: gpu.rft: does not depend on the platform; known are engine, learner, resources, rollout"],
        ),
        ({"gpu": {"engine": 3}}, ["r.toml: gpu.engine: must be a table: [gpu.engine]"]),
        ({"cpu": 2}, ["r.toml: cpu: must be a table, such as [cpu.engine]"]),
        (
            {"engine": {"threads": 2}, "gpu": {"learner": {"dtype": "bfloat16"}}},
            ["r.toml: engine: threads: no effect on device 'cuda'; remove it, or in a recipe write it in [cpu.engine] (on platform gpu)"],
        ),
        (
            {"rtf": {}, "episodes": {"keep": 0}, "gpu": {"learner": {"dtype": "bf16"}}},
            [
                "r.toml: episodes.keep: must be greater than or equal to 1, not 0",
                "r.toml: rtf: unknown key; did you mean 'rft'?",
                "r.toml: gpu.learner.dtype: 'bf16' must be 'float32' or 'bfloat16'; did you mean 'bfloat16'?",
            ],
        ),
        ({"platform": "tpu"}, ["r.toml: platform: 'tpu' must be 'auto', 'cpu' or 'gpu'; did you mean 'gpu'?"]),
    ],
)
def test_problems_are_named_where_they_were_written(machine: Callable[..., None], more: dict[str, Any], lines: list[str]) -> None:
    assert refused(**more) == lines


def test_several_learners_share_what_one_would_hold(seven_b: Path, machine: Callable[..., None]) -> None:
    run = recipe(model=str(seven_b), learner={"microbatch_tokens": 1024}, resources={"ray_address": "auto", "learners": 4})
    asked = Asked(run.placement)
    assert (asked.learner["num_learners"], asked.learner["num_gpus_per_learner"], run.placement.gpus) == (4, 1, 5)
    layer = (6_738_415_616 - 32000 * 4096) // 32
    passes = 1024 * 32 * (52 * 4096 + 16 * 11008) + 512 * 32000 * 12
    plan = make_plan(run)
    assert plan.memory_mb["each GPU of a learner"] == round((4 * 6_738_415_616 + 8 * (layer + 2 * 32000 * 4096) + passes) / 1e6)
    assert "4 learners: 1 GPU each" in shown(plan)


def test_adapters_are_all_that_is_trained(seven_b: Path, machine: Callable[..., None]) -> None:
    lora = {"rank": 8, "targets": ["q_proj", "down_proj"]}
    run = recipe(model=str(seven_b), learner={"lora": lora, "microbatch_tokens": 1024}, resources={"ray_address": "auto"})
    trained = 32 * 8 * (4096 + 4096 + 4096 + 11008)
    passes = 1024 * 32 * (52 * 4096 + 16 * 11008) + 512 * 32000 * 12
    plan = make_plan(run)
    assert plan.memory_mb["learner's GPU"] == round((16 * trained + 4 * 6_738_415_616 + passes) / 1e6)
    line = "adapters of rank 8, 6.0 M parameters (0.1% of the model's); "
    assert line + "engines get these 23.9 MB alone and merge them" in shown(plan)
    whole = replace(run, engine=run.engine.model_copy(update={"adapters": "merged"}))
    assert line + "engines and checkpoints get the model with the adapters merged into it" in shown(make_plan(whole))


def test_the_phase_that_needs_most_decides_and_each_says_what_it_trains(
    seven_b: Path, machine: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "talks.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    sft = {"kind": "sft", "steps": 1, "data": str(tmp_path / "talks.jsonl"), "lora": {"rank": 8, "targets": ["q_proj", "down_proj"]}}
    where: dict[str, Any] = {"resources": {"ray_address": "auto"}, "engine": {"max_context": 2048}}
    run = recipe(model=str(seven_b), phases=[sft, {"kind": "rft", "lr": 1e-6}], **where)
    plan = make_plan(run)
    assert plan.memory_mb["learner's GPU"] == make_plan(recipe(model=str(seven_b), rft={"lr": 1e-6}, **where)).memory_mb["learner's GPU"]
    text = " ".join(shown(plan).split())
    assert "sft: adapters of rank 8, 6.0 M parameters (0.1% of the model's); engines get these 23.9 MB alone" in text
    assert "rft: over what sft ends with, all weights" in text


# What cannot work


@pytest.mark.parametrize(
    ("gpus", "more", "line"),
    [
        (0, {}, "platform: gpu, but torch sees no GPU on this machine; choose --platform cpu, or name a cluster that has some in "
                "resources.ray_address"),
        (1, {"resources": {"learner_gpus": 1}}, "resources: learner: 1 GPU; 1 engine: 1 GPU, tensor parallel 1: "
         "this machine has 1 GPU; lower env_runners "
                "or engine.tensor_parallel, share GPUs with learner_gpus and engine_gpus below 1, or name a cluster in ray_address"),
        (4, {"engine": {"tensor_parallel": 4}}, "resources: learner: 1 GPU; 1 engine: 4 GPUs of one node, tensor parallel 4: this machine "
                "has 4 GPUs; lower env_runners or engine.tensor_parallel, share GPUs with learner_gpus and engine_gpus below 1, or name a "
                "cluster in ray_address"),
        (2, {"engine": {"device": "cpu"}}, "r.toml: engine.device: cpu is not what platform gpu computes on; remove it and choose the "
                "platform"),
        (2, {"learner": {"device": "cuda:1"}}, "r.toml: learner.device: cuda:1 is not what platform gpu computes on; remove it and choose "
                "the platform"),
        (2, {"engine": {"tensor_parallel": 2}, "resources": {"engine_gpus": 0.5}}, "r.toml: resources.engine_gpus: has no effect with "
                "tensor_parallel = 2, which takes whole GPUs; remove one of them"),
        (2, {"engine": {"gpu_memory_fraction": 0.9}, "resources": {"engine_gpus": 0.5}}, "r.toml: engine.gpu_memory_fraction: 0.9 is more "
                "than resources.engine_gpus = 0.5; lower it"),
        (2, {"resources": {"learners": 2, "learner_gpus": 0.5}}, "r.toml: resources: learner_gpus = 0.5 does not fit learners = 2: each "
                "needs a GPU of its own"),
        (2, {"resources": {"learners": 2}}, "resources: 2 learners: 1 GPU each; 1 engine: 1 GPU, tensor parallel 1: "
         "this machine has 2 GPUs; lower learners, "
                "env_runners or engine.tensor_parallel, share GPUs with learner_gpus and engine_gpus below 1, or name a cluster in "
                "ray_address"),
        (2, {"resources": {"learner_gpus": 2}}, "r.toml: resources.learner_gpus: must be less than or equal to 1, not 2"),
        (2, {"engine": {"threads": 2}}, "r.toml: engine: threads: no effect on device 'cuda'; remove it, or in a recipe write it in "
                "[cpu.engine]"),
        (2, {"engine": {"weight_transfer": "nccl"}}, "r.toml: engine: weight_transfer: no learner sends weights that way yet; remove it, "
                "and they pass through Ray's object store"),
    ],
)  # fmt: skip
def test_what_cannot_work_on_gpus(machine: Callable[..., None], gpus: int, more: dict[str, Any], line: str) -> None:
    machine(gpus=gpus)
    assert refused(platform="gpu", **more) == [line]


def test_a_plan_for_gpus_is_made_where_there_are_none(seven_b: Path, machine: Callable[..., None]) -> None:
    """A run is refused, in the same words."""
    machine(gpus=0)
    config = config_from_data({"name": "p", "model": str(seven_b), "environment": "burnish/Arithmetic-v0", "platform": "gpu"})
    plan = make_plan(resolve(config, planning=True))
    assert plan.warnings[0].startswith("platform: gpu, but torch sees no GPU on this machine; choose --platform cpu, or name a cluster")
    assert "learner: 1 GPU" in shown(plan)
    with pytest.raises(ValueError, match="torch sees no GPU on this machine"):
        resolve(config)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"engine": {"device": "cuda"}},
            "r.toml: engine.device: cuda is not what platform cpu computes on; remove it and choose the platform",
        ),
        (
            {"engine": {"tensor_parallel": 2}},
            "r.toml: engine: tensor_parallel: no effect on device 'cpu'; remove it, or in a recipe write it in [gpu.engine]",
        ),
        ({"resources": {"engine_gpus": 1}}, "r.toml: resources.engine_gpus: has no effect on platform cpu; write it in [gpu.resources]"),
        (
            {"resources": {"engine_resources": {"slot": 1.0}}},
            "r.toml: resources: engine_resources: a cluster that is started here offers none; say which cluster does in ray_address",
        ),
    ],
)
def test_what_cannot_work_on_a_cpu(machine: Callable[..., None], more: dict[str, Any], line: str) -> None:
    assert refused(platform="cpu", **more) == [line]


@pytest.mark.parametrize(("gpus", "possible"), [(3, "1, 2, 4, 8, 16, 32"), (12, "1, 2, 4, 8, 16, 32"), (5, "1, 2, 4, 8, 16, 32")])
def test_attention_heads_must_be_shared_evenly(seven_b: Path, machine: Callable[..., None], gpus: int, possible: str) -> None:
    run = recipe(model=str(seven_b), engine={"tensor_parallel": gpus}, resources={"ray_address": "auto"})
    with pytest.raises(ValueError) as caught:
        make_plan(run)
    assert str(caught.value) == (
        f"engine.tensor_parallel: {gpus} GPUs cannot share 32 attention heads and 32 key-value heads of seven-b; choose one of {possible}"
    )


def test_sixteen_gpus_hold_copies_of_eight_key_value_heads(seven_b: Path, machine: Callable[..., None]) -> None:
    (seven_b / "config.json").write_text(json.dumps({**SEVEN_B, "num_key_value_heads": 8}))
    make_plan(recipe(model=str(seven_b), engine={"tensor_parallel": 16}, resources={"ray_address": "auto"}))


def test_bfloat16_on_a_cpu_without_it_is_a_warning(tiny: Path, machine: Callable[..., None]) -> None:
    asked: dict[str, Any] = {"model": str(tiny), "engine": {"dtype": "bfloat16"}, "learner": {"dtype": "bfloat16"}}

    def about_bfloat16(**more: Any) -> list[str]:
        return [line for line in make_plan(recipe("cpu", **more)).warnings if "bfloat16" in line]

    assert about_bfloat16(**asked) == []
    machine(bfloat16=False)
    assert about_bfloat16(model=str(tiny)) == []
    warnings = about_bfloat16(**asked)
    assert [line.partition(":")[0] for line in warnings] == ["engine.dtype", "learner.dtype"]
    assert warnings[0].endswith("bfloat16 is many times slower than float32 on this CPU, which has neither AVX-512 nor instructions for it")


# Room on a cluster


@pytest.mark.parametrize(
    ("placement", "nodes", "answer"),
    [
        (Placement("gpu", learner_gpus=0.5, engine_gpus=0.5), [1.0], True),
        (Placement("gpu", learner_gpus=0.5, engine_gpus=0.6), [1.0], False),
        (Placement("gpu", learner_gpus=0.4, engine_gpus=0.6, engines=2), [2.0], True),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=0.6, engines=2), [2.0], False),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2), [3.0], True),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2, learners=2), [3.0], False),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2, learners=2), [3.0, 1.0], True),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2), [1.0, 2.0], True),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2), [1.0, 1.0, 1.0], False),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=4.0, tensor_parallel=4, engines=2), [8.0], False),
        (Placement("gpu", learner_gpus=1.0, engine_gpus=4.0, tensor_parallel=4, engines=2), [8.0, 1.0], True),
        (Placement("cpu"), [], True),
    ],
)
def test_room_is_whole_gpus_of_one_node_or_a_share_of_one(placement: Placement, nodes: list[float], answer: bool) -> None:
    assert (cluster_problem(placement, nodes) is None) == answer
    if placement.platform == "gpu":
        assert fits(placement, nodes) == answer


def test_learners_go_to_several_nodes_only_where_the_recipe_trusts_the_network() -> None:
    apart = Placement("gpu", "auto", learner_gpus=1.0, engine_gpus=1.0, learners=2)
    assert str(cluster_problem(apart, [1.0, 1.0, 1.0])).startswith("resources.learners: they are on more than one node, where torch")
    assert cluster_problem(replace(apart, trusted_network=True), [1.0, 1.0, 1.0]) is None
    assert cluster_problem(apart, [2.0, 1.0]) is None and cluster_problem(replace(apart, learners=1), [1.0, 1.0]) is None
    assert recipe("gpu", resources={"ray_address": "auto", "learners": 2, "trusted_network": True}).placement.trusted_network
    for alone in ({"ray_address": "auto"}, {"learners": 2}):
        with pytest.raises(ValueError, match="trusted_network has no effect"):
            recipe("gpu", resources={**alone, "trusted_network": True})


def test_a_cluster_without_room_is_named() -> None:
    placement = Placement("gpu", "head:6379", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2, engines=2)
    assert cluster_problem(placement, [2.0, 0.0]) == (
        "resources: learner: 1 GPU; 2 engines: 2 GPUs each of one node, tensor parallel 2: the cluster at head:6379 has no room, "
        "GPUs by node: 2, 0"
    )


def test_engines_take_the_resources_of_their_nodes() -> None:
    run = recipe("cpu", resources={"ray_address": "auto", "env_runners": 4, "engine_resources": {"engine_slot": 1}})
    assert Asked(run.placement).runners == {
        "num_env_runners": 4,
        "num_gpus_per_env_runner": 0.0,
        "custom_resources_per_env_runner": {"engine_slot": 1.0},
    }


def test_a_service_of_the_runs_own_node_is_none_for_engines_elsewhere() -> None:
    services = {"judge": {"verifier": "my_team.checks:verdict"}}
    rewards = [{"name": "judge", "verifier": "service:judge"}]
    run = recipe("cpu", resources={"ray_address": "auto"}, services=services, rewards=rewards)
    own: dict[str, Any] = {"NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0, "node:10.0.0.1": 1.0}}
    said = (
        "services.judge: the run starts it on the loopback of this node, and an engine may be on node 10.0.0.7 (worker-3), which does not "
        "reach that; serve it where every node reaches it, by burnish serve-verifier or deploy-verifier, and write [services.judge] "
        "address = …"
    )
    stay = ', or keep engines on this node by resources.engine_resources = { "node:10.0.0.1" = 0.001 }'
    assert unreached(run, "judge", "node 10.0.0.7 (worker-3)", own) == said + stay
    assert unreached(run, "judge", "node 10.0.0.7 (worker-3)", {**own, "Resources": {"CPU": 0.0, "node:10.0.0.1": 1.0}}) == said
    kept = recipe("cpu", resources={"ray_address": "auto", "engine_resources": {"node:10.0.0.1": 0.001}})
    assert may_hold_engine(kept.placement, own["Resources"]), "what the line says keeps engines there"
    assert not may_hold_engine(kept.placement, {"CPU": 8.0, "node:10.0.0.7": 1.0})


def test_nodes_are_asked_for_their_loopback_before_engines_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is scripted: calls are the nodes that they are for."""
    own, other, small = (
        {
            "NodeID": 56 * id,
            "Alive": True,
            "NodeManagerAddress": f"10.0.0.{id}",
            "NodeManagerHostname": f"host-{id}",
            "Resources": {"CPU": cpus},
        }
        for id, cpus in (("1", 4.0), ("2", 4.0), ("3", 0.0))
    )
    said, asked = {56 * "2": this_loopback()}, list[str]()

    def call(scheduling_strategy: Any) -> Any:
        asked.append(scheduling_strategy.node_id)
        return types.SimpleNamespace(remote=lambda: scheduling_strategy.node_id)

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: types.SimpleNamespace(options=call))
    monkeypatch.setattr(ray, "nodes", lambda: [own, other, small, {**other, "NodeID": 56 * "4", "Alive": False}])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(get_node_id=lambda: 56 * "1"))
    monkeypatch.setattr(ray, "wait", lambda calls, num_returns, timeout: ([one for one in calls if one in said], []))
    monkeypatch.setattr(ray, "get", lambda call, timeout: said[call])
    judge = {"services": {"judge": {"verifier": "my_team.checks:verdict"}}, "rewards": [{"name": "judge", "verifier": "service:judge"}]}
    check_reach(recipe("cpu", resources={"ray_address": "auto"}))
    check_reach(recipe("cpu", **judge))
    assert asked == [], "without a service, or without a cluster, there is nothing to ask"
    run = recipe("cpu", resources={"ray_address": "auto"}, **judge)
    check_reach(run)
    assert asked == [56 * "2"], "its own node need not be asked, nor one without room"
    said[56 * "2"] = ("another machine", "net:[1]")
    with pytest.raises(ValueError, match=r"services\.judge: .* an engine may be on node 10\.0\.0\.2 \(host-2\), which does not reach that"):
        check_reach(run)
    said.clear()
    with pytest.raises(ValueError, match=r"node 10\.0\.0\.2 \(host-2\) does not say within 600 s whether it reaches services\.judge"):
        check_reach(run)
