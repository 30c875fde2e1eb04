"""A model whose chat template goes on for ever where a client says a word, behind vLLM's own rendering."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from burnish.serving.config import ServingConfig
from burnish.serving.engine import start_engine
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=96, vocab_size=300, max_position=256)
NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


async def test_a_template_without_an_end_ends_its_own_request_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    new_model([f"The bore of part {i} measures {i * 0.37:.3f} mm." for i in range(60)], folder, SIZE)
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}{% if 'loop' in m.content %}" + NO_END + "{% endif %}{% endfor %}" + template.read_text())
    engine = await start_engine(folder, "tiny", ServingConfig(device="cpu"))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(engine.app), base_url="http://service", timeout=120) as client:

            async def ask(said: str) -> httpx.Response:
                asked = {"model": "tiny", "messages": [{"role": "user", "content": said}], "max_tokens": 2}
                return await client.post("/v1/chat/completions", json=asked)

            endless, well = await asyncio.gather(ask("loop"), ask("part 17"))
            assert (endless.status_code, well.status_code) == (400, 200), (endless.text, well.text)
            assert "takes more than" in endless.json()["error"]["message"]
    finally:
        engine.close()
