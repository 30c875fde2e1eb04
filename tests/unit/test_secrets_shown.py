"""Values that may be secrets: whoever reads them, no error repeats them, and nothing that is told of a service does."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field
from tests.unit.guard_policy import tables

from burnish.envs.remote.client_kwargs import check_client_kwargs
from burnish.envs.remote.service import ServedEnvironment
from burnish.guardrails.policy import read_policy
from burnish.recipe.checks import secret_problems
from burnish.recipe.load import config_from_data
from burnish.recipe.overrides import parse_override
from burnish.rewards.graders.types import read_grader
from burnish.rewards.options import _check_model, _check_option
from burnish.rpc.errors import Status
from burnish.run.space import _dimension
from burnish.trainer.models.config_file import MODEL_TYPES, check_config

pytestmark = pytest.mark.unit

SECRET = "-".join(("s3", "cret"))
"""Put together, for a traceback quotes the lines that it went through."""
CONFIG: dict[str, Any] = {"architectures": [next(iter(MODEL_TYPES))], "model_type": next(iter(MODEL_TYPES.values()))}


class Told(BaseModel):
    """Options with a secret among them."""

    api_key: str = Field(default="", pattern="^[A-Z_]*$")
    url: int = 0


ERRORS: dict[str, Callable[[str], object]] = {
    "an option of a function": lambda secret: _check_option("it", "token", int, secret),
    "an option of a model": lambda secret: _check_model("it", Told, {"api_key": secret}),
    "a URL of a model": lambda secret: _check_model("it", Told, {"url": f"https://me:{secret}@h"}),
    "a grader": lambda secret: read_grader({"type": "string_check", "name": "a", "token": secret, "input": {"headers": secret}}),
    "a policy": lambda secret: read_policy(tables(pii={"category": "personal", "kinds": {"password": secret}})),
    "a recipe": lambda secret: config_from_data({"name": "q", "model": "nano", "services": {"s": {"token_env": [secret]}}}),
    "what a recipe holds": lambda secret: config_from_data({"name": "q", "environment_args": {"api_key": secret}}),
    "an override": lambda secret: config_from_data({"name": "q"}, overrides=[parse_override(f"services.s.token_env=[{secret!r}]")]),
    "an override that is none": lambda secret: parse_override(f"token..a={secret}"),
    "a space": lambda secret: _dimension(secret, "space.toml: rewards.0.args.token"),
    "a model's config": lambda secret: check_config(CONFIG | {"vocab_size": f"https://me:{secret}@h"}, "m"),
    "what a client sets": lambda secret: check_client_kwargs("e", {"api_key": f"{secret}:1"}, ("api_key",)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_repeats_no_secret_and_no_error_behind_it_does(what: str) -> None:
    with pytest.raises((ValueError, Status)) as caught:
        ERRORS[what](SECRET)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("field", ["api_keys", "passphrase", "password1", "secrets", "db_password_2", "accessTokens"])
@pytest.mark.parametrize("value", [SECRET, [SECRET], {"openai": SECRET}, {"a": {"b": [[SECRET]]}}])
def test_a_recipe_holds_nothing_that_is_called_a_secret(field: str, value: Any) -> None:
    (said,) = secret_problems({"rewards": [{"args": {field: value}}]})
    assert said.startswith(f"rewards.0.args.{field}: is called a secret") and SECRET not in said
    (said,) = secret_problems({"base_url": f"https://me:a/{SECRET}@h/v1"})
    assert said.startswith("base_url: holds a user name or password") and SECRET not in said


def test_what_is_only_called_like_a_secret_may_stand_in_a_recipe() -> None:
    names = ("key", "key1", "key_column", "primary_key", "pass", "pass_k", "max_tokens", "compass", "keys", "password_file", "api_keys_env")
    urls = ("https://h/@user/x", "https://h:8000/x?to=a@b.c", "http://[::1]:8000/@user")
    assert not list(
        secret_problems(
            dict.fromkeys(names, "x") | {"url": [*urls], "secrets": {"n": 1, "env": "NAME", "db_file": "f"}, "api_key": [], "passwords": 3}
        )
    )


@pytest.mark.parametrize(
    "credentials",
    [
        {"token_env": "X", "region": "eu"},
        {"path": "/run/secrets/x"},
        {"tokenFile": "x", "user": "me", "retries": 3},
        [{"key_file": "x", "region": "eu"}, {"keyfile": "x"}],
        {"openai": {"env": "X", "region": "eu"}, "other": {"file": "x"}},
    ],
)
def test_a_table_of_a_secret_may_say_where_that_is_read(credentials: Any) -> None:
    assert not list(secret_problems({"args": {"credentials": credentials}}))


@pytest.mark.parametrize(
    "credentials",
    [
        {"profile": SECRET},
        {"region": SECRET},
        {"token_env": "X", "token": SECRET},
        {"token_env": "X", "more": [{"key": SECRET}]},
        {"openai": {"env": "X"}, "other": SECRET},
    ],
)
def test_but_it_holds_no_secret(credentials: Any) -> None:
    (said,) = secret_problems({"args": {"credentials": credentials}})
    assert said.startswith("args.credentials: is called a secret") and SECRET not in said


def test_a_number_may_be_a_secret_too() -> None:
    fields = ["password", "pwd", "credentials.api_key"]
    said = [*secret_problems({"password": 12345678, "pwd": 3, "credentials": {"api_key": 12345678, "port": 80}, "secret": True})]
    assert [line.partition(": is called a secret")[0] for line in said] == fields


def test_what_an_environment_is_served_with_is_told_without_its_secrets() -> None:
    served = ServedEnvironment("burnish/Arithmetic-v0", {"max_operand": 20})
    object.__setattr__(served, "kwargs", {"max_operand": 20, "api_key": SECRET, "base": f"https://me:{SECRET}@h"})
    assert json.loads(served.describe().kwargs_json) == {"max_operand": 20, "api_key": "…", "base": "https://…@h"}
