"""What both vLLM backends share: checks, sampling parameters, deadlines, and the weight update from pause to resume."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...envs.failures import EpisodeFailure, FailureKind
from ...envs.types import Float32
from .base import GenerateRequest, Generation
from .config import EngineConfig
from .gate import Gate
from .layout import BFLOAT16, Shapes, check_request, check_shapes, checkpoint_shapes

T = TypeVar("T")

WARM_UP = GenerateRequest("warm-up", [0], max_tokens=1, temperature=1.0, stop_token_ids=(), seed=0)


class VLLMEngine(ABC):
    """An `Engine` over vLLM; see `InProcessEngine` and `AsyncEngine`.

    A weight update is announced, checked against the checkpoint's full list of names and shapes, and then loaded as it comes: what is not
    loaded yet need not be in this process.
    """

    def __init__(self, config: EngineConfig, model_path: Path, name: str) -> None:
        if not (model_path / "config.json").is_file():
            raise ValueError(f"engine {name}: {model_path} is not a model folder, for it has no config.json")
        self._config = config
        self._model_path = model_path
        self._gate = Gate(name, config.request_timeout_s, config.update_limit_s)
        self._serial = itertools.count()
        self._loaded: Mapping[str, str] | None = None
        self._expected: dict[str, tuple[int, ...]] = {}
        self._vocab_size = 0

    @property
    def name(self) -> str:
        return self._gate.name

    @property
    def max_context(self) -> int:
        return self._config.max_context

    @property
    def weight_version(self) -> int:
        return self._gate.version

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`. Raises ValueError for a request that cannot be served as asked."""
        check_request(request, self.max_context, self._vocab_size)
        async with self._gate.admitted():
            output, seconds = await self._gate.answered(self._submitted(request), request.max_seconds)
        return self._generation(request, output, seconds)

    async def pause_generation(self, finish: bool = True) -> None:
        await self._gate.pause(self._config.drain_timeout_s, finish)

    async def start_weight_update(self, shapes: Shapes) -> None:
        """Announce the tensors. Raises ValueError when one is missing, unknown or misshapen; the engine then refuses to generate until a
        whole update."""
        self._gate.start()
        self._loaded = None
        with self._refusing_unless_done():
            check_shapes(shapes, self._expected, self.name)

    async def update_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Load the tensors, which must be those announced: `finish_weight_update` says which were."""
        self._gate.require_updating()
        if self._loaded is not None:
            raise ValueError(f"engine {self.name}: its weights were loaded already; give all tensors of an update at once")
        with self._refusing_unless_done():
            self._loaded = await self._within(self._load(tensors), self._config.update_timeout_s, "weights not loaded")

    async def finish_weight_update(self, version: int) -> Mapping[str, str]:
        """Forget the KV cache made under the old weights, and answer to `version`; checksums of what was loaded.

        What is in flight keeps its KV cache where `on_new_weights` is "keep"; otherwise it is computed again under the new weights.
        """
        self._gate.require_updating()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            raise ValueError(f"engine {self.name}: no weights were loaded; call update_weights before finish_weight_update")
        with self._refusing_unless_done():
            await self._within(self._adopt(version), self._config.update_timeout_s, f"weights of version {version} not taken over")
        self._gate.finish(version)
        return loaded

    @contextmanager
    def _refusing_unless_done(self) -> Iterator[None]:
        """When what is within raises, the engine refuses to generate until a whole update."""
        try:
            yield
        except BaseException as error:
            self._gate.fail(f"{type(error).__name__}: {error}")
            raise

    async def refuse_generation(self, reason: str) -> None:
        self._gate.fail(reason)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[Float32]:
        """All sequences together. Raises ValueError for one that cannot be served, EpisodeFailure otherwise."""
        asked = [GenerateRequest(f"score-{i}", list(ids), 1, 0.0, (), score_prompt=True) for i, ids in enumerate(sequences)]
        for request in asked:
            check_request(request, self.max_context, self._vocab_size)
        async with self._gate.admitted():
            outputs, _ = await self._gate.answered(asyncio.gather(*map(self._submitted, asked)))
        return [_prompt_logprobs(one, output) for one, output in zip(asked, outputs, strict=True)]

    async def resume_generation(self) -> None:
        self._gate.resume()

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def _submit(self, request_id: str, request: GenerateRequest) -> Any:
        """Run one request to vLLM's final `RequestOutput`; abort it inside the engine when cancelled."""

    @abstractmethod
    async def _load(self, tensors: Iterable[tuple[str, np.ndarray]]) -> Mapping[str, str]:
        """Load a complete set of tensors. Returns the checksum of every one, taken as it was loaded."""

    @abstractmethod
    async def _adopt(self, version: int) -> None:
        """Reset the prefix cache, and label what is sampled from now on with `version`."""

    def _submitted(self, request: GenerateRequest) -> Awaitable[Any]:
        return self._submit(f"{request.request_id}#{next(self._serial)}", request)

    def _learn_model(self, model_config: Any) -> None:
        """Read the vocabulary and the list of tensors from vLLM's `ModelConfig` and the checkpoint."""
        self._vocab_size = model_config.get_vocab_size()
        self._expected = checkpoint_shapes(self._model_path, tied=bool(model_config.hf_text_config.tie_word_embeddings))

    async def _within(self, work: Awaitable[T], timeout_s: float, what: str) -> T:
        try:
            return await asyncio.wait_for(work, timeout_s)
        except TimeoutError:
            raise self._gate.failure(FailureKind.ENGINE_TIMEOUT, f"{what} within {timeout_s:g} s") from None

    @property
    def _keeps(self) -> bool:
        """Whether requests in flight keep the KV cache that the weights before have made."""
        return self._config.on_new_weights == "keep"

    def _inputs(self, request: GenerateRequest) -> Any:
        """vLLM's input. Where KV caches outlive their weights, the version keeps later requests from sharing them."""
        from vllm.inputs.engine import tokens_input

        salt = f"version-{self.weight_version}" if self._keeps else None
        return tokens_input(request.prompt_token_ids, cache_salt=salt)

    def _lost(self, detail: str) -> EpisodeFailure:
        return self._gate.failure(FailureKind.ENGINE_LOST, detail)

    def _generation(self, request: GenerateRequest, output: Any, seconds: float) -> Generation:
        """Convert vLLM's `CompletionOutput`; one flat log-probability per token, and the version spans that vLLM recorded."""
        sampled = output.outputs[0]
        if sampled.finish_reason not in ("stop", "length"):
            raise self._gate.failure(FailureKind.ENGINE_ERROR, f"request {request.request_id} ended as {sampled.finish_reason!r}")
        token_ids = np.asarray(sampled.token_ids, dtype=np.int32)
        versions = np.full(len(token_ids), -1, dtype=np.int32)
        for span in sampled.weight_versions:
            versions[span.start : span.end] = int(span.version)
        assert sampled.logprobs.token_ids == list(sampled.token_ids), "vLLM's flat log-probabilities are not those of the sampled tokens"
        assert (versions >= 0).all(), "vLLM left a token without a weight version"
        return Generation(token_ids, np.asarray(sampled.logprobs.logprobs, dtype=np.float32), versions, sampled.finish_reason, seconds)


def sampling_params(request: GenerateRequest) -> Any:
    """vLLM's `SamplingParams`: the untruncated distribution, stopping at the given tokens only."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=True,
        seed=request.seed,
        logprobs=0,
        prompt_logprobs=0 if request.score_prompt else None,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def count_tokens(llm: Any, sampled: Callable[[int], None], each: Callable[[Any, int], None] | None = None) -> None:
    """Have `sampled` told how many tokens each step of vLLM's `LLMEngine` or `AsyncLLM` gave, in the thread that takes them in; and `each`,
    how many to which request, a `RequestState` of vLLM's.

    Answers come whole, and vLLM's statistics come with Prometheus; what every step passes through in this process is its output processor.
    """
    processor = llm.output_processor
    process = processor.process_outputs

    def counting(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        sampled(sum(len(one.new_token_ids) for one in outputs))
        for one in outputs if each is not None else ():
            state = processor.request_states.get(one.request_id)
            if state is not None and each is not None:
                each(state, len(one.new_token_ids))
        return process(outputs, *args, **kwargs)

    processor.process_outputs = counting


def _prompt_logprobs(request: GenerateRequest, output: Any) -> Float32:
    """float32 `[tokens - 1]` from vLLM's per-position tables; nothing precedes the first token."""
    given, ids = output.prompt_logprobs, request.prompt_token_ids
    assert given is not None and len(given) == len(ids), "vLLM gave no log-probability for each token of the prompt"
    return np.array([table[token].logprob for table, token in zip(given[1:], ids[1:], strict=True)], np.float32)


def as_tensor(array: np.ndarray) -> Any:
    """A torch tensor over the same memory."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Any) -> np.ndarray:
    """The inverse of `as_tensor`, of a tensor on the CPU."""
    import torch

    array: np.ndarray = tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def register_model_class(architectures: Iterable[str]) -> None:
    """Tell vLLM about the model's class directly; otherwise it starts a process that imports vLLM again just to look at it."""
    from vllm import ModelRegistry

    for architecture in architectures:
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())
