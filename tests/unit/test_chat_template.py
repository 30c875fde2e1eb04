"""Chat templates within bounds: what is rendered is what transformers renders, and a template without end is stopped by what it does."""

from __future__ import annotations

import copy
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tests.unit.chat_templates import FAMILIES, family_tokenizer
from transformers.utils import chat_template_utils

from burnish.rollout import chat_template
from burnish.rollout.chat_template import Unbounded, render_chat, rendered
from burnish.rollout.engine.vllm_openai import bound_templates
from burnish.rollout.renderers import TemplateRenderer
from burnish.trainer.models.importing import ModelSize, new_model, verify_model

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": " 4 \n"},
    {"role": "user", "content": "and <b>&'\"?"},
]
TOOL = {"type": "function", "function": {"name": "add", "description": "Ädds.", "parameters": {"type": "object", "properties": {}}}}
NESTED = "{% set ns = namespace(x=[1]) %}{% for a in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
LAST_BLOCK = "{% block b40 %}{% endblock %}"
NO_END = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(1001) if range(1001)|length < 0 %}{% endfor %}",
    "{% set c = 'x' * 2000 %}{% for a in c %}{% for b in c %}{% endfor %}{% endfor %}",
    "{% set c = 'x' * 2000 %}{% for a in c %}{% for b in c if b == a and false %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    *(f"{NESTED}{{{{ {shown} }}}}" for shown in ("ns.x", "ns.x ~ ''", "ns.x|tojson", "'%s' % (ns.x,)", "{'a': ns.x}.items()")),
    "".join(f"{{% block b{i} %}}{{{{ self.b{i + 1}() }}}}{{{{ self.b{i + 1}() }}}}{{% endblock %}}" for i in range(40)) + LAST_BLOCK,
    "{{ range(10 ** 30) }}",
)
TOO_LARGE = (
    "{{ 'a' * 4000000000 }}", "{{ 4000000000 * 'a' }}", "{{ 2 ** 4000000000 }}", "{{ '%4000000000d' % 1 }}",
    "{{ '%*d' % (4000000000, 1) }}",
    "{% set ns = namespace(x='a') %}{% for a in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for a in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for a in range(1000) %}{{ 'a' * 1000000 }}{% endfor %}", "{{ [1]|tojson(indent=4000000000) }}",
    "{% set ns = namespace(x=7) %}{% for a in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
)  # fmt: skip


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server does to transformers, undone afterwards."""
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", chat_template_utils._compile_jinja_template)
    bound_templates()


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_renders_within_bounds_is_what_it_renders(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = family_tokenizer(family)
    given: list[dict[str, Any]] = [{"add_generation_prompt": True}, {"tools": [TOOL]}, {"continue_final_message": True}]
    talks = [(TALK, given[0]), (TALK, given[1]), (TALK[:2], given[2])]
    within = [said(tokenizer, rows, more) for rows, more in talks]
    monkeypatch.undo()
    assert within == [said(tokenizer, rows, more) for rows, more in talks]


def said(tokenizer: Any, rows: list[dict[str, Any]], more: dict[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(rows, tokenize=False, **more))
    except (ValueError, TemplateError) as error:
        return f"refused: {type(error).__name__}: {error}"


@pytest.mark.usefixtures("bounded")
def test_a_template_that_goes_on_for_ever_with_what_a_client_says_is_stopped_where_transformers_renders_it() -> None:
    tokenizer = copy.deepcopy(family_tokenizer("chatml"))
    tokenizer.chat_template = "{% for m in messages %}{% if 'loop' in m.content %}" + NO_END[0] + "{% endif %}{{ m.content }}{% endfor %}"
    assert said(tokenizer, TALK[:1], {}) == "What is 2 + 2?"
    with pytest.raises(Unbounded, match="steps"):
        tokenizer.apply_chat_template([{"role": "user", "content": "loop"}], tokenize=False)


BIG = "{% set big = 'a' * 8000000 %}{% set ns = namespace(x=[]) %}"
MAKE = (
    "big ~ i",
    "big + 'b'",
    "big[1:]",
    "big|upper",
    "big.lower()",
    "'%s!' % big",
    "[big, i]|join",
    "''.join([big, 'b'])",
    "[big]|tojson",
)
TOO_MUCH = (
    *(f"{BIG}{{% for i in range(200) %}}{{% set ns.x = ns.x + [{made}] %}}{{% endfor %}}{{{{ ns.x|length }}}}" for made in MAKE),
    f"{BIG}{{% for i in range(200) %}}{{% set x %}}{{{{ big }}}}{{% endset %}}{{% set ns.x = ns.x + [x] %}}{{% endfor %}}",
    f"{BIG}{{% macro m() %}}{{{{ big }}}}{{% endmacro %}}{{% for i in range(200) %}}{{% set ns.x = ns.x + [m()] %}}{{% endfor %}}",
    f"{BIG}{{% for i in range(200) %}}{{% set ns.x = ns.x + [big] %}}{{% endfor %}}{{{{ ns.x|join }}}}",
    f"{BIG}{{% for i in range(200) %}}{{% set ns.x = ns.x + [big] %}}{{% endfor %}}{{{{ ns.x }}}}",
)  # fmt: skip
"""Values of which each is allowed, and all together are not: gigabytes."""


def tokenizer_with(template: str) -> Any:
    tokenizer = copy.deepcopy(family_tokenizer("chatml"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_what_is_rendered_is_what_transformers_renders(family: str, tools: Any) -> None:
    tokenizer = family_tokenizer(family)
    for talk in (TALK, TALK[:2], TALK[:1]):
        for generate in (True, False):
            theirs = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=generate, tools=tools)
            assert render_chat(tokenizer, talk, generate, {"tools": tools}) == theirs


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
        "  {%- for m in messages if m.role == 'user' %}{{ loop.index }}{% if loop.last %}{% break %}{% endif %}\n{% endfor %}",
        "{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m(2) %}b{% endcall %}{{ 1 ~ 'a' ~ none }}",
        "{{ [1, 'é']|tojson }}{{ {'b': 1, 'a': 2}|tojson(indent=2) }}{{ 'a' * 3 + 'b' }}{{ 7 % 4 }}{{ '%3d' % 5 }}{{ 2 ** 10 }}",
        "{% for k in range(3) recursive %}{{ k }}{% else %}none{% endfor %}{{ messages|map(attribute='role')|join(',') }}",
        "{% set step = 1 %}{% for m in messages %}{{ step }}{% endfor %}{{ strftime_now('%Y')|length }}",
    ],
)
def test_every_statement_means_what_it_means_to_transformers(template: str) -> None:
    tokenizer = tokenizer_with(template)
    assert render_chat(tokenizer, TALK, True) == tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of what a rendering may take, so that the end of it is soon there."""
    monkeypatch.setattr(chat_template, "MOST_STEPS", 10_000)


def test_a_rendering_has_a_million_steps() -> None:
    thousand = "{% for a in range(TURNS) if range(1000)|length == 1000 %}{% endfor %}done"
    assert rendered(thousand.replace("TURNS", "990"), {}) == "done"
    with pytest.raises(Unbounded, match="takes more than 1,000,000 steps"):
        rendered(thousand.replace("TURNS", "1000"), {})


@pytest.mark.parametrize("template", [*NO_END, *TOO_LARGE])
@pytest.mark.usefixtures("few_steps")
def test_a_template_without_end_is_stopped(template: str) -> None:
    with pytest.raises(Unbounded, match=r"the chat template (takes|makes)"):
        rendered(template, {"messages": TALK})
    assert rendered("{{ range(9)|length }}", {}) == "9", "each rendering has a budget of its own"


@pytest.mark.parametrize("template", TOO_MUCH)
def test_what_many_values_take_together_is_bounded(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Unbounded, match=r"the chat template makes more than [0-9,]+ characters"):
            rendered(template, {"messages": TALK})
        assert tracemalloc.get_traced_memory()[1] < 2 * chat_template.MOST_MADE
    finally:
        tracemalloc.stop()


def test_a_long_conversation_is_far_from_what_its_template_may_make() -> None:
    """Piece by piece, as templates write: every message adds to a text, to a list, and is trimmed and cut."""
    template = (
        "{% set ns = namespace(text='', rows=[]) %}{% for m in messages %}{% set ns.text = ns.text + m.content|trim %}"
        "{% set ns.rows = ns.rows + [m] %}{% if messages[1:]|length %}{{ m.content[:9] }}{% endif %}{% endfor %}{{ ns.text|length }}"
    )
    talk = [{"role": "user", "content": "word " * 40}] * 1500
    assert rendered(template, {"messages": talk}).endswith(str(1500 * 199))


def test_a_rendering_has_so_much_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "DEADLINE_S", -1.0)
    with pytest.raises(Unbounded, match="takes more than"):
        rendered("{% for m in messages %}{% endfor %}", {"messages": TALK})


@pytest.mark.usefixtures("few_steps")
def test_whoever_renders_says_so(tmp_path: Path) -> None:
    new_model(["some text"], tmp_path / "m", ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64))
    file = tmp_path / "m" / "chat_template.jinja"
    file.write_text(file.read_text() + NO_END[0])
    with pytest.raises(ValueError, match="takes more than 10,000 steps"):
        verify_model(tmp_path / "m")
    with pytest.raises(Unbounded):
        TemplateRenderer(tokenizer_with(NO_END[0]))
    shutil.rmtree(tmp_path / "m")
