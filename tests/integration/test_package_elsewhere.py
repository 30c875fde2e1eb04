"""A package, served by burnish and by vLLM's own server: two processes, and the same answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.integration.bare_vllm import bare_vllm
from tests.integration.started import Started
from tests.integration.taught import taught_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ANSWERS = {"Is the bore of part 17 within its limit?": "No: it is 0.02 mm too wide.", "And the bore of part 18?": "Yes."}
FIRST, SECOND = ANSWERS
TALKS: list[Any] = [
    [{"role": "user", "content": FIRST}],
    [{"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWERS[FIRST]}, {"role": "user", "content": SECOND}],
    [{"role": "system", "content": "You inspect parts."}, {"role": "user", "content": " What of\npart 19? "}],
]


def answers(url: str) -> list[tuple[Any, Any, Any]]:
    """To each conversation, asked greedily: the ids of its prompt as the server read it, the text, and how it ended."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        found = list[tuple[Any, Any, Any]]()
        for messages in TALKS:
            answer: Any = client.chat.completions.create(
                model="inspector", messages=messages, temperature=0, max_tokens=32, extra_body={"return_token_ids": True}
            )
            found.append((answer.prompt_token_ids, answer.choices[0].message.content, answer.choices[0].finish_reason))
        return found


def test_vllms_own_server_answers_from_a_package_as_burnish_does(start: Callable[..., Started], tmp_path: Path) -> None:
    taught_model(tmp_path / "taught", ANSWERS)
    command = [sys.executable, "-m", "burnish.cli.main", "package", str(tmp_path / "taught"), str(tmp_path / "ship")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "NOT passed" in done.stdout) == (1, True), done.stderr  # nothing was measured, and the package is there
    with bare_vllm(tmp_path / "ship", tmp_path / "vllm.log", "--served-model-name", "inspector", "--max-model-len", "256") as url:
        elsewhere = answers(url)
    served = start("serve", str(tmp_path / "ship"), "--port", "0", "--name", "inspector")
    served.until_said("(Ctrl-C stops it)")
    found = re.search(r"serving inspector at (\S+)/v1", served.said)
    assert found is not None
    assert elsewhere == answers(found[1])
    assert elsewhere[0][1:] == (ANSWERS[FIRST], "stop")
