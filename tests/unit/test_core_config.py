"""A recipe: defaults, what is refused and in which words, overrides, and the round trip of the resolved config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.registry import load_plugin
from burnish.guardrails.policy import load_policy
from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_data, config_from_data, load_config
from burnish.recipe.resolve import resolve
from burnish.recipe.services import ServiceConfig
from burnish.rewards.config import RewardConfig
from burnish.rewards.graders.types import load_grader
from burnish.rewards.terms import Term
from burnish.trainer.data.curated.catalog import read_catalog
from burnish.trainer.evaluation.suites.files import read_suite
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

ESSENTIAL = """
name = "quality-inspection"
model = "nano"
environment = "burnish/QualityInspection-v0"
reward_function = "burnish/inspection-cost-v1"
multi_turn_rollouts = true
"""

SERVICES = """
name = "q"
model = "nano"
environment = "burnish/QualityInspection-v0"
environment_args = { tools = "service:shop-floor" }
multi_turn_rollouts = true
success = "verdict.correct"
[[rewards]]
verifier = "service:verdicts"
name = "verdict"
[[rewards]]
use = "burnish/inspection-cost-v1"
weight = 0.1
[services.shop-floor]
tools = "my_team.tools"
[services.verdicts]
verifier = "my_team.checks:verdict"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "r.toml"
        file.write_text(text)
        return file

    return write


def problems(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        load_config(file, overrides)
    return str(caught.value).replace(str(file), "r.toml").splitlines()


def test_the_essential_recipe_is_a_whole_run(recipe: Callable[[str], Path]) -> None:
    config = load_config(recipe(ESSENTIAL))
    assert [table.kind for table in config.tables] == ["rft"]
    assert config.rft == RFTPhaseConfig()
    assert config.rollout.max_turns == 8
    assert config.scorers == (RewardConfig(use="burnish/inspection-cost-v1"),)
    assert (config.scorers[0].name, config.scorers[0].weight) == ("inspection-cost", 1.0)
    assert config.success == "env"


@pytest.mark.parametrize("verifier", ["service:verdicts", "ray:verdicts", "h:1,i:2", "[::1]:5", "h:1?tls=1&server_name=judge-v1"])
def test_a_verifier_is_named_by_an_address(verifier: str) -> None:
    assert RewardConfig(verifier=verifier, name="v").verifier == verifier


def test_a_recipe_may_begin_with_a_byte_order_mark(recipe: Callable[[str], Path]) -> None:
    file = recipe(ESSENTIAL)
    plain = load_config(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_config(file) == plain
    file.write_bytes("name = 'x'".encode("utf-16"))
    with pytest.raises(ValueError, match="not UTF-8 text: byte 0 cannot be read"):
        load_config(file)


def test_the_path_of_a_services_file_may_hold_spaces() -> None:
    assert ServiceConfig(tools="my team/shop tools.py").target == "my team/shop tools.py"
    assert ServiceConfig(tools="my team/shop tools.py:bench").target.rpartition(":")[2] == "bench"
    assert ServiceConfig(verifier="my team/checks.py:verdict").kind == "verifier"
    assert ServiceConfig(environment="my team/lake.py:my-team/Lake-v0").kind == "environment"
    for wrong in ("my team/checks:verdict", " checks.py:verdict", "checks.py"):
        with pytest.raises(ValueError, match=r"verifier"):
            ServiceConfig(verifier=wrong)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('[cpt]\nsteps = 1\ndata = "a.docx"', "r.toml: cpt.data: a.docx: the suffix '.docx' is unknown"),
        ('[sft]\nsteps = 1\ndata = "a.txt"', "r.toml: sft.data: a.txt: rows are asked for, not plain text"),
        ('[tasks]\ntrain = "a.md"\nheld_out = "b.JSONL.gz"', "r.toml: tasks.train: a.md: rows are asked for, not plain text"),
    ],
)
def test_a_data_file_of_an_unknown_form_is_refused_by_its_name(recipe: Callable[[str], Path], table: str, line: str) -> None:
    (found,) = problems(recipe(f"{ESSENTIAL}{table}\n"))
    assert found.startswith(line)


def test_without_multi_turn_rollouts_an_episode_is_one_turn(recipe: Callable[[str], Path]) -> None:
    assert load_config(recipe(ESSENTIAL), ["multi_turn_rollouts=false"]).rollout.max_turns == 1


def test_phases_run_in_their_order_whatever_the_order_in_the_file(recipe: Callable[[str], Path]) -> None:
    text = ESSENTIAL + '[rft]\nsteps = 1\n[sft]\nsteps = 1\ngenerate = "m:f"\n[cpt]\nsteps = 1\ngenerate = "m:f"\n'
    assert [table.name for table in load_config(recipe(text)).tables] == ["cpt", "sft", "rft"]
    without_rft = ESSENTIAL + '[sft]\nsteps = 1\ngenerate = "m:f"\n'
    assert [table.name for table in load_config(recipe(without_rft)).tables] == ["sft"]


def test_a_service_and_its_reward_share_a_name_by_default(recipe: Callable[[str], Path]) -> None:
    config = load_config(recipe(SERVICES.replace('name = "verdict"\n', "").replace("verdict.correct", "verdicts.correct")))
    assert [entry.name for entry in config.scorers] == ["verdicts", "inspection-cost"]


def test_reward_function_takes_a_list(recipe: Callable[[str], Path]) -> None:
    config = load_config(recipe(ESSENTIAL), ['reward_function=["a/x-v1", "a/y-v2"]'])
    assert [entry.name for entry in config.scorers] == ["x", "y"]


@pytest.mark.parametrize(
    ("addition", "line"),
    [
        ("modle = 1", "r.toml: modle: unknown key; did you mean 'model'?"),
        ("[rft]\nsteps = 3\nkl_coef = 0.1", "r.toml: rft.kl_coef: unknown key: kl_coef stands in the table rft.objective"),
        ("[rollout]\nmax_turn = 3", "r.toml: rollout.max_turn: unknown key; did you mean 'max_turns'?"),
        (
            '[cpt]\nsteps = 3\ngenerate = "m:f"\nwarmup_steps = 20\nschedule = "cosine"',
            'r.toml: cpt: warmup_steps = 20 leaves none of 3 steps to schedule = "cosine"; lower it',
        ),
        (
            '[rft]\nsteps = 3\nwarmup_steps = 3\nschedule = "cosine"',
            'r.toml: rft: warmup_steps = 3 leaves none of 3 steps to schedule = "cosine"; lower it',
        ),
        ("[learner.optimizer]\nbeta = 1", "r.toml: learner.optimizer.beta: unknown key; did you mean 'betas'?"),
        ('[services.a]\ntools = "m"\nadress = "x"', "r.toml: services.a.adress: unknown key; did you mean 'address'?"),
        ('[[rewards]]\nuse = "a/b-v1"\nwieght = 2', "r.toml: rewards.0.wieght: unknown key; did you mean 'weight'?"),
        ('seed = "1"', "r.toml: seed: must be an integer, not string '1'"),
        ("seed = true", "r.toml: seed: must be an integer, not boolean True"),
        ("rollout = 3", "r.toml: rollout: must be a table, not integer 3"),
        ("[rft]\nsteps = 2.5", "r.toml: rft.steps: must be an integer, not float 2.5"),
        ("[rft]\nsteps = 0", "r.toml: rft.steps: must be greater than or equal to 1, not 0"),
        ("[rft]\nlr = nan", "r.toml: rft.lr: must be a finite number, not nan"),
        (
            "[rft]\ngroup_size = 1",
            "r.toml: rft.group_size: must be at least 2, not 1: the episodes of one task are compared with each other",
        ),
        (
            '[rollout]\nfailure_action = "msk"',
            "r.toml: rollout.failure_action: 'msk' must be 'mask', 'drop' or 'stop'; did you mean 'mask'?",
        ),
        (
            '[rollout]\non_failure = { verifier_timeot = "mask" }',
            "r.toml: rollout.on_failure.verifier_timeot: 'verifier_timeot' is unknown; did you mean 'verifier_timeout'?",
        ),
        (
            '[[rewards]]\nname = "x"',
            'r.toml: rewards.0: needs exactly one of use = "namespace/name-v1" (a plug-in) and verifier = "service:NAME" or "host:port"',
        ),
        *(
            (
                f'[[rewards]]\nverifier = "answers.py:short_answer"{name}',
                "r.toml: rewards.0: verifier = 'answers.py:short_answer' is no address, and a verifier runs as a service: "
                'services.NAME.verifier = "answers.py:short_answer" with verifier = "service:NAME" in a recipe, or '
                "`burnish serve-verifier answers.py:short_answer`, whose host:port it is then",
            )
            for name in ("", '\nname = "v"')
        ),
        (
            '[[rewards]]\nverifier = "my-team/short-answer-v1"',
            "r.toml: rewards.0: verifier = 'my-team/short-answer-v1' is no address, and a verifier runs as a service: "
            'services.NAME.verifier = "my_file.py:function" with verifier = "service:NAME" in a recipe, or '
            "`burnish serve-verifier my-team/short-answer-v1`, whose host:port it is then; a reward of that id is named by use",
        ),
        ('[[rewards]]\nverifier = "h:1"', 'r.toml: rewards.0: needs name = "…", the part of the reward it gives'),
        (
            '[[rewards]]\nuse = "a/b-v1"\ndeadline_s = 2',
            "r.toml: rewards.0: deadline_s has no effect on a reward plug-in, which declares its limit as @reward(…, timeout_s=…)",
        ),
        (
            '[[rewards]]\nverifier = "h:1"\nverifier_id = "right"',
            "r.toml: rewards.0: verifier_id = 'right' must read namespace/name-vN, for example 'my-team/right-v1'",
        ),
        (
            '[[rewards]]\nuse = "a/b-v1"\nverifier_id = "a/b-v1"',
            "r.toml: rewards.0: verifier_id has no effect on a reward plug-in (use = …)",
        ),
        (
            '[[rewards]]\nverifier = "h:1"\nname = "v"\nargs = { a = 1 }',
            "r.toml: rewards.0: args has no effect on a verifier; options belong to a reward plug-in (use = …)",
        ),
        (
            '[services.a]\ntools = "m"\naddress = "h:1"',
            'r.toml: services.a: needs exactly one of tools = "module", verifier = "module:name", environment = "namespace/Name-v0" '
            'and address = "host:port", but has tools and address',
        ),
        (
            '[services.a]\nenvironment = "lake"',
            "r.toml: services.a.environment: 'lake' must be namespace/Name-v0, module:namespace/Name-v0 or path.py:namespace/Name-v0",
        ),
        (
            '[services.a]\naddress = "h:1"\npython = "python"',
            "r.toml: services.a: python has no effect with address: that service runs already",
        ),
        ('[services.a]\ntools = "m"\nkwargs = { a = 1 }', "r.toml: services.a: kwargs has no effect without environment; remove it"),
        (
            '[services.a]\nverifier = "module"',
            "r.toml: services.a.verifier: 'module' must be module:name or path.py:name, where name is the function with @verifier",
        ),
        ("[sft]\nsteps = 3", 'r.toml: sft: needs exactly one of data = "PATH" and generate = "module:function"'),
        ('[sft]\ngenerate = "m:f"', "r.toml: sft.steps: is required"),
        ('[sft]\nsteps = 3\ngenerate = "m.:f"', "r.toml: sft.generate: 'm.:f' must read module:function or file.py:function"),
        (
            '[sft]\nsteps = 3\ndata = "x.jsonl"\ncount = 4',
            "r.toml: sft: count has no effect on data = …; it belongs to generate = …",
        ),
        (
            "[evaluation]\nsampled = false\ngreedy = false",
            "r.toml: evaluation: sampled and greedy are both false, so nothing would be measured; set one to true",
        ),
        ("[evaluation]\ntasks = 9\nseeds = [2000000000, 2000000005]", "r.toml: evaluation: tasks = 9 but seeds holds only 5; widen seeds"),
        (
            '[resources]\nray_address = "auto"\ncpus = 4',
            "r.toml: resources: cpus has no effect with ray_address: the running cluster has its own; remove one of them",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_to_do(recipe: Callable[[str], Path], addition: str, line: str) -> None:
    assert problems(recipe(ESSENTIAL + addition + "\n")) == [line]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["multi_turn_rollouts=false", "rollout.max_turns=3"], "rollout.max_turns: 3 turns need multi_turn_rollouts = true"),
        (
            ["multi_turn_rollouts=false", "environment_args.max_turns=3"],
            "environment_args.max_turns: 3 turns need multi_turn_rollouts = true",
        ),
        (["rollout.max_turns=1"], "rollout.max_turns: 1 turn contradicts multi_turn_rollouts = true; raise it or remove one of them"),
        (
            ["engine.max_context=512"],
            "engine.max_context: 512 tokens cannot hold max_turns x max_tokens_per_turn = 8 x 64 = 512 sampled tokens and a prompt; "
            "raise it or lower rollout.max_tokens_per_turn",
        ),
        (
            ["limits.stall_s=120"],
            "limits.stall_s: 120 s in which no call ends would end the run, and one call of the engine may take "
            "rollout.episode_timeout_s = 300 s, and engine.request_timeout_s = 300 s more where it hangs; raise it, or lower one of these",
        ),
        (
            ["rollout.episode_timeout_s=400"],
            "limits.stall_s: 600 s in which no call ends would end the run, and one call of the engine may take "
            "rollout.episode_timeout_s = 400 s, and engine.request_timeout_s = 300 s more where it hangs; raise it, or lower one of these",
        ),
        (["success=verdct.correct"], "success: no reward gives a part 'verdct.correct'; did you mean 'verdict'?"),
        (["rewards.1.name=verdict"], "rewards: 2 of them are called 'verdict'; give each another name = \"…\""),
        (
            ["rewards.0.weight=0", "rewards.1.weight=0", "environment_weight=0"],
            "rewards: every weight is 0, so nothing would be trained; give one reward or environment_weight a weight",
        ),
        (
            ["services.spare.address='h:1'"],
            "services.spare: nothing uses it; write 'service:spare' in environment_args or in a reward's verifier, or remove it",
        ),
        (
            ["train_seeds=[0, 1000000001]"],
            "evaluation.seeds: [1000000000, 2000000000] overlaps train_seeds [0, 1000000001]; held-out tasks must never be trained on",
        ),
        (
            ["evaluation.seeds=[500, 1500]"],
            "evaluation.seeds: [500, 1500] overlaps train_seeds [0, 1000000000]; held-out tasks must never be trained on",
        ),
        (
            ["cpt.steps=10", "cpt.generate=m:f", "cpt.batch=10", "train_seeds=[0, 99]"],
            "cpt.count: 100 examples but train_seeds holds only 99; widen it or lower count",
        ),
        (["learner.optimizer.lr=0.1"], "learner.optimizer.lr: has no effect, every phase has its own schedule; write rft.lr"),
        (
            ["engine.weight_deltas=true"],
            "engine.weight_deltas: has no effect on the one node that is started here; remove it, or name a cluster in "
            "resources.ray_address",
        ),
        (["rft.lora=false"], "rft.lora: false has no effect without [learner.lora], whose adapters it would leave out; remove it"),
        (
            ["rft.lora.rank=2", "learner.lora.rank=4"],
            "learner.lora: has no effect where every phase says in its own table what it trains; remove it",
        ),
        (
            ["sft.generate=m:f", "sft.steps=1", "rft.lora.rank=2", "engine.adapters=alone"],
            "engine.adapters: has no effect where the first phase trains all weights: engines get merged ones from then on; remove it",
        ),
        (["engine.adapters=alone"], "engine.adapters: has no effect without [learner.lora], which trains some; remove it"),
        (
            ["engine.weight_deltas=true", "learner.lora.rank=4", "resources.ray_address=auto"],
            'engine.weight_deltas: has no effect where only adapters are sent, of [learner.lora]; remove it, or write adapters = "merged"',
        ),
    ],
)
def test_impossible_combinations_are_refused(recipe: Callable[[str], Path], overrides: list[str], line: str) -> None:
    found = [text.partition(": ")[2] for text in problems(recipe(SERVICES), *overrides)]
    assert found == [line]


def test_a_misspelt_service_is_one_line_and_one_that_nothing_names_another(recipe: Callable[[str], Path]) -> None:
    lines = problems(recipe(SERVICES), "environment_args.tools=service:shopfloor")
    assert lines == [
        "--set environment_args.tools=service:shopfloor: environment_args.tools: service:shopfloor has no table [services.shopfloor]; "
        "did you mean 'shop-floor'?",
    ]
    lines = problems(recipe(SERVICES), "environment_args.tools=service:elsewhere")
    assert [line.partition(": ")[2].partition(";")[0] for line in lines] == [
        "environment_args.tools: service:elsewhere has no table [services.elsewhere]",
        "services.shop-floor: nothing uses it",
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("clip = [1.0, 0.0]", "clip must be [low, high] with low < high, not [1.0, 0.0]"),
        ('normalize = "minmax"', 'normalize = "minmax" needs range = [low, high], the values that become 0 and 1'),
        ("range = [0.0, 1.0]", 'range has no effect without normalize = "minmax"'),
        ("cap = 0.0", "cap has no effect without gate, the value below which it caps the total"),
        ("weight = 0.0\nclip = [0.0, 1.0]", "clip has no effect with weight = 0; parts are recorded as the scorer gave them"),
    ],
)
def test_what_shapes_a_reward_must_make_sense_together(recipe: Callable[[str], Path], keys: str, line: str) -> None:
    assert problems(recipe(ESSENTIAL + f'[[rewards]]\nuse = "my-team/x-v1"\n{keys}\n')) == [f"r.toml: rewards.0: {line}"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("gaet = 0.5", "rewards.0.gaet: unknown key; did you mean 'gate'?"),
        ('normalize = "minmaks"', "rewards.0.normalize: 'minmaks' must be 'minmax' or 'group'; did you mean 'minmax'?"),
        ("clip = [0.0]", "rewards.0.clip.1: is required"),
        ('gate = "high"', "rewards.0.gate: must be a number, not string 'high'"),
    ],
)
def test_what_shapes_a_reward_is_spelled_right(recipe: Callable[[str], Path], keys: str, line: str) -> None:
    assert problems(recipe(ESSENTIAL + f'[[rewards]]\nuse = "my-team/x-v1"\n{keys}\n')) == [f"r.toml: {line}"]


def test_what_shapes_a_reward_reads_back_equal(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    keys = 'clip = [0.0, 8.0]\nnormalize = "minmax"\nrange = [0, 10]\ngate = 0.5\ncap = -1.0\n'
    config = load_config(recipe(ESSENTIAL + f'[[rewards]]\nuse = "my-team/x-v1"\n{keys}'))
    assert config.rewards[0].term == Term(1.0, (0.0, 8.0), "minmax", (0.0, 10.0), 0.5, -1.0)
    (tmp_path / "config.json").write_text(json.dumps(config_data(config)))
    assert load_config(tmp_path) == config


def test_a_tool_service_is_no_verifier(recipe: Callable[[str], Path]) -> None:
    lines = problems(recipe(SERVICES), "rewards.verdict.verifier=service:shop-floor")
    assert "--set rewards.verdict.verifier=service:shop-floor: rewards.verdict: service:shop-floor serves tools, not a verifier" in lines


def test_every_problem_is_reported_at_once(recipe: Callable[[str], Path]) -> None:
    lines = problems(recipe('name = "q!"\nseed = -1\n[rft]\nstepz = 3\n'))
    assert lines == [
        'r.toml: name: \'q!\' must be made of letters, digits, ".", "_" and "-"',
        "r.toml: model: is required: a folder, a name under models/, or a source that `burnish models import` takes",
        'r.toml: environment: is required: an id of `burnish env list`, for example "burnish/Arithmetic-v0"',
        "r.toml: seed: must be greater than or equal to 0, not -1",
        "r.toml: rft.stepz: unknown key; did you mean 'steps'?",
    ]


def test_an_environment_must_read_like_an_id(recipe: Callable[[str], Path]) -> None:
    assert problems(recipe(ESSENTIAL), "environment=FrozenLake")[0].endswith(
        "environment: 'FrozenLake' must read namespace/Name-v0 or module:namespace/Name-v0, for example 'burnish/Arithmetic-v0'"
    )
    assert load_config(recipe(ESSENTIAL), ["environment=my_team.envs:my-team/Riddles-v0"]).environment == "my_team.envs:my-team/Riddles-v0"


def test_toml_that_does_not_parse_names_the_line(recipe: Callable[[str], Path]) -> None:
    assert problems(recipe('name = "x"\nseed = = 2\n')) == ["r.toml: not valid TOML: Invalid value (at line 2, column 8)"]
    (line,) = problems(recipe("rft = { steps = 3 }\n[rft.objective]\nkl_coef = 0.1\n"))
    assert line.endswith("a table that stands in { … } on one line takes no further keys: give it a [table] of its own")


def test_files_that_are_not_there_are_named(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    text = ESSENTIAL + 'plugins = ["no.py"]\n[sft]\nsteps = 1\ndata = "no.jsonl"\n'
    plugin, data = problems(recipe(text))
    assert plugin == f"r.toml: plugins: no.py is not a file; a path counts from the folder that burnish is started in, {Path.cwd()}"
    assert data == "r.toml: sft.data: no.jsonl is not there"
    with pytest.raises(ValueError, match=r"recipe .*nope\.toml does not exist; .* has .*r\.toml"):
        load_config(tmp_path / "nope.toml")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", "[]", "config.json: must hold a JSON object, not a list"),
        ("config.json", "[" * 100_000, "config.json: not valid JSON: "),
        ("config.json", '{"seed": ' + "9" * 5000 + "}", "config.json: not valid JSON: "),
        ("r.toml", "a = " + "[" * 5000, "r.toml: not valid TOML: "),
        ("r.toml", "seed = " + "9" * 5000, "r.toml: not valid TOML: "),
    ],
)
def test_a_file_that_is_no_recipe_is_a_line_that_names_it(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(tmp_path / name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_override_that_cannot_be_read_is_refused_and_a_long_value_is_cut(recipe: Callable[[str], Path]) -> None:
    assert problems(recipe(ESSENTIAL), "name=" + "[" * 5000)[0].startswith("--set name=[[[")
    assert problems(recipe(ESSENTIAL), "seed=\ud800") == ["--set 'seed=\\ud800': is not UTF-8 text"]
    (line,) = problems(recipe(ESSENTIAL), f"seed={'x' * 100_000}")
    assert "seed: must be an integer, not string 'xxx" in line.split(": ", 1)[1] and line.endswith("…")


def test_plugins_that_are_no_list_are_refused_beside_those_of_the_command_line(recipe: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="plugins: must be a list, not integer 1"):
        load_config(recipe(f"plugins = 1\n{ESSENTIAL}"), plugins=["x.py"])


def test_overrides_are_toml_values_and_otherwise_strings(recipe: Callable[[str], Path]) -> None:
    overrides = ["rft.steps=3", "rft.lr=1e-6", "model=models/big", 'name="x"', "environment_args={level = 2}", "evaluation.greedy=false"]
    config = load_config(recipe(ESSENTIAL), overrides)
    assert config.rft is not None
    assert (config.rft.steps, config.rft.lr, config.model, config.name) == (3, 1e-6, "models/big", "x")
    assert config.environment_args == {"level": 2}
    assert config.evaluation.greedy is False


def test_overrides_reach_items_of_a_list_by_name_and_number(recipe: Callable[[str], Path]) -> None:
    config = load_config(recipe(SERVICES), ["rewards.verdict.weight=2.0", "rewards.1.weight=0.5"])
    assert [entry.weight for entry in config.scorers] == [2.0, 0.5]
    by_its_part = load_config(recipe(SERVICES), ["rewards.inspection-cost.weight=0.7"])  # what the plan calls it
    assert [entry.weight for entry in by_its_part.scorers] == [1.0, 0.7]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rft.steps", "--set rft.steps: must read key=value or table.key=value, for example --set rft.steps=50"),
        ("=3", "--set =3: must read key=value or table.key=value, for example --set rft.steps=50"),
        ("rft.stps=4", "--set rft.stps=4: rft.stps: unknown key; did you mean 'steps'?"),
        ("rtf.steps=4", "--set rtf.steps=4: rtf: unknown key; did you mean 'rft'?"),
        ("cpt.lr=1e-4", "--set cpt.lr=1e-4: cpt.steps: is required"),
        ("rft.lr=fast", "--set rft.lr=fast: rft.lr: must be a number, not string 'fast'"),
        ("name.first=x", "--set name.first=x: name is a string in r.toml, not a table"),
        ("rewards.verdict.wieght=1", "--set rewards.verdict.wieght=1: rewards.0.wieght: unknown key; did you mean 'weight'?"),
        (
            "rewards.1.foo.bar=1",
            "--set rewards.1.foo.bar=1: rewards.1.foo: unknown key; known are use, verifier, verifier_id, name, weight, "
            "clip, normalize, range, gate, cap, args, deadline_s",
        ),
        (
            "rewards.inspection-cst.weight=1",
            "--set rewards.inspection-cst.weight=1: there is no item 'inspection-cst'; did you mean 'inspection-cost'?",
        ),
        ("rewards.verdit.weight=1", "--set rewards.verdit.weight=1: there is no item 'verdit'; did you mean 'verdict'?"),
    ],
)
def test_a_wrong_override_is_named(recipe: Callable[[str], Path], override: str, line: str) -> None:
    assert problems(recipe(SERVICES), override) == [line]


def test_an_override_that_only_a_tables_own_check_refuses_is_named_too(recipe: Callable[[str], Path]) -> None:
    """Of a clip that has no effect with one update a step, the check of the whole table says so; the file is not to blame."""
    text = '\n[rft]\n[rft.objective]\nloss = "ppo_clip"\ncorrection = "truncate"\n'
    (line,) = problems(recipe(ESSENTIAL + text), "rft.objective.loss_args.clip_high=0.3")
    assert line.startswith("--set rft.objective.loss_args.clip_high=0.3: rft: objective.loss_args.clip_high has no effect")
    (line,) = problems(recipe(ESSENTIAL + text + "loss_args = { clip_high = 0.3 }\n"), "rft.steps=3")
    assert line.startswith("r.toml: rft: objective.loss_args.clip_high has no effect")


def test_the_value_of_an_override_cannot_smuggle_in_other_keys(recipe: Callable[[str], Path]) -> None:
    config = load_config(recipe(ESSENTIAL), ['model="x"\nseed = 5'])
    assert config.seed == 0
    assert config.model == '"x"\nseed = 5'


@pytest.mark.parametrize(
    "text", [ESSENTIAL, SERVICES, ESSENTIAL + '[cpt]\nsteps = 2\nschedule = "cosine"\ngenerate = "m:f"\nargs = { a = [1, 2] }\n']
)
def test_the_resolved_config_reads_back_equal(recipe: Callable[[str], Path], tmp_path: Path, text: str) -> None:
    config = load_config(recipe(text), ["rollout.on_failure.env_error=stop"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_data(config)))
    again = load_config(file)
    assert again == config
    assert config_data(again) == config_data(config)
    assert load_config(tmp_path) == config  # a run folder stands for its config.json
    assert config_data(config)["rollout"]["retries"] == 2, "defaults are written out"


def test_the_resolved_config_still_knows_what_was_said(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """A default that was written out does not count as said: else `learner.optimizer.lr` would be refused on reading back."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_data(load_config(recipe(ESSENTIAL)))))
    assert load_config(file, ["rft.steps=7"]).learner.optimizer.model_fields_set == set()


def test_a_written_config_shows_one_learning_rate_for_each_phase(recipe: Callable[[str], Path]) -> None:
    data = config_data(load_config(recipe(ESSENTIAL), ["rft.lr=3e-5"]))
    assert set(data["learner"]["optimizer"]) == {"betas", "eps", "weight_decay", "grad_clip"}
    assert data["rft"]["lr"] == 3e-5


def test_each_phase_gets_an_optimizer_with_its_own_schedule(recipe: Callable[[str], Path]) -> None:
    overrides = [
        "sft.steps=40", "sft.generate=m:f", "sft.lr=1e-3", "sft.schedule=cosine", "sft.warmup_steps=4", "rft.lr=2e-5",
        "learner.optimizer.weight_decay=0.1", "rollout.temperature=0.8",
    ]  # fmt: skip
    run = resolve(load_config(recipe(ESSENTIAL), overrides))
    sft, rft = run.phase("sft").optimizer, run.phase("rft").optimizer
    assert (sft.lr, sft.schedule, sft.warmup_steps, sft.total_steps) == (1e-3, "cosine", 4, 40)
    assert (rft.lr, rft.schedule, rft.total_steps) == (2e-5, "constant", None)
    assert sft.weight_decay == rft.weight_decay == 0.1


def test_configs_are_frozen_and_checked_in_python_too(recipe: Callable[[str], Path]) -> None:
    config = config_from_data({"name": "x", "model": "m", "environment": "a/B-v0"})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValueError, match="no reward gives a part 'verdict'"):
        resolve(RunConfig(name="x", model="m", environment="a/B-v0", success="verdict"))


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("recipes/*.toml")), ids=lambda file: file.stem)
def test_the_recipes_that_ship_are_valid(file: Path) -> None:
    assert load_config(file).name == file.stem


REMOTE = """
name = "sums"
model = "nano"
environment = "burnish/Remote-v0"
environment_args = { address = "service:sums" }

[services.sums]
environment = "burnish/Arithmetic-v0"
kwargs = { max_operand = 20 }
"""


def test_a_remote_environment_plays_on_an_environment_service(recipe: Callable[[str], Path]) -> None:
    service = load_config(recipe(REMOTE)).services["sums"]
    assert (service.kind, service.target, service.kwargs) == ("environment", "burnish/Arithmetic-v0", {"max_operand": 20})


def test_tools_are_no_environment_and_an_environment_no_tools(recipe: Callable[[str], Path]) -> None:
    tools = REMOTE.replace('environment = "burnish/Arithmetic-v0"\nkwargs = { max_operand = 20 }', 'tools = "my.tools"')
    assert "r.toml: environment_args.address: service:sums serves tools, not an environment" in problems(recipe(tools))
    local = REMOTE.replace("burnish/Remote-v0", "burnish/QualityInspection-v0").replace("address =", "tools =")
    assert problems(recipe(local)) == [
        "r.toml: environment_args.tools: service:sums serves an environment, not tools; "
        'write environment = "burnish/Remote-v0" to play in it'
    ]


def test_a_blended_environment_is_named_by_its_id_alone(recipe: Callable[[str], Path]) -> None:
    (said,) = problems(recipe(ESSENTIAL + '[[rft.blend]]\nenvironment = "sums.py:my-team/Sums-v0"\npercent = 20\n'))
    assert "rft.blend.0.environment" in said and said.endswith('of your own, give the id alone, and plugins = ["sums.py"]')


def test_the_services_of_blended_environments_are_what_those_play_with(recipe: Callable[[str], Path]) -> None:
    blended = """
[[rft.blend]]
environment = "burnish/%s-v0"
environment_args = { %s }
percent = 25.0
"""
    local = (blended % ("Remote", 'address = "service:sums"')) + (blended % ("QualityInspection", 'tools = "service:sums"'))
    assert problems(recipe(REMOTE + local)) == [
        "r.toml: rft.blend.1.environment_args.tools: service:sums serves an environment, not tools; "
        'write environment = "burnish/Remote-v0" to play in it'
    ]
    sent = blended % ("Remote", 'address = "service:sums", kwargs = { max_operand = 9 }')
    says = "rft.blend.0.environment_args.kwargs: a service lets no client set what it is made with; write services.sums.kwargs"
    assert problems(recipe(REMOTE + sent)) == [f"r.toml: {says}"]


def test_what_a_started_service_is_made_with_stands_in_its_own_table(recipe: Callable[[str], Path]) -> None:
    sent = REMOTE.replace('"service:sums" }', '"service:sums", kwargs = { max_operand = 9 } }')
    says = "r.toml: environment_args.kwargs: a service lets no client set what it is made with; write services.sums.kwargs"
    assert problems(recipe(sent)) == [says]


@pytest.mark.parametrize("place", ["environment_args.feed", "rewards.0.args.handler", "services.a.kwargs.deep.0", "resources.ray_address"])
def test_a_secret_in_a_url_never_gets_into_a_run(place: str, tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "name": "n",
        "model": "m",
        "environment": "burnish/Arithmetic-v0",
        "environment_args": {"feed": "x"},
        "rewards": [{"use": "burnish/reward-lambda-v1", "args": {"handler": "x"}}],
        "services": {"a": {"environment": "burnish/Arithmetic-v0", "kwargs": {"deep": ["x"]}}},
        "resources": {"ray_address": "x"},
    }
    for url in ("https://me:s3cret@h/x", "see https://h/x?api_key=s3cret there", "ray://s3cret@h:1"):
        *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        here: Any = data
        for part in way:
            here = here[part]
        here[last] = url
        with pytest.raises(ValueError, match=f"r.toml: {place}: holds .* in a URL, and a recipe is stored with its run") as caught:
            config_from_data(data, "r.toml")
        assert "s3cret" not in str(caught.value)


def test_a_recipe_with_a_key_of_many_parts_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A run folder brings a recipe along, and tomllib takes the square of a key's parts: minutes for a megabyte."""
    file = tmp_path / "recipe.toml"
    file.write_text("name = 'x'\n" + "a." * 200_000 + "a = 1\n")
    with pytest.raises(ValueError, match=r"recipe\.toml: not valid TOML: a key of more than 32 parts \(at line 2\)"):
        load_config(file)


def test_a_text_that_is_too_long_for_a_path_is_a_file_that_is_not_there(recipe: Callable[[str], Path]) -> None:
    long = "x" * 300
    more = f'plugins = ["{long}.py"]\n[tasks]\ntrain = "{long}.jsonl"\nheld_out = "{long}"\n[services.s]\ntools = "m"\npython = "{long}"\n'
    said = "\n".join(problems(recipe(ESSENTIAL + more)))
    for line in (f"plugins: {long}.py is not a file", f"tasks.train: {long}.jsonl is not there", f"tasks.held_out: {long} is not there"):
        assert line in said
    assert f"services.s.python: {long} is not a file" in said
    looks: tuple[Callable[[Path], object], ...] = (load_policy, read_catalog, read_suite, load_grader, load_plugin)
    for look in looks:
        with pytest.raises(ValueError, match=r"there is no such|is not a file|no folder with"):
            look(Path(long))
