"""Many versions of many models behind one address: a gateway on Ray Serve, and an application of Serve's for each version.

The gateway is the service that `burnish serve` is, with a router where that has its engine. There is one of it, because limits are counted
in it; it holds no model, so it is soon there again. Versions are applications of their own, so that one starts or ends beside the others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..guardrails.guard import Guard
from ..rollout.engine.vllm_openai import Adapter
from .admission import AGAIN_S, Refused
from .app import chat_service
from .audit import Books, record_of
from .canary.judge import JudgedAnswer
from .canary.watch import CanaryWatch, Judgement, JudgeOutage
from .config import ServingConfig
from .engine import start_engine
from .event_stream import says_nothing
from .liveness import Liveness
from .routes import (
    Routes,
    VersionShare,
    app_name,
    canaries,
    engine_name,
    engines_of,
    judge_name,
    names,
    served_name,
    shadows_for,
    version_for,
    versions_of,
    without,
)
from .rules import Rules, front_of, load_plugins, most_under_way
from .shadow import Heard, Shadows
from .wire import PROBES, READY, USAGE, answer, asked_once, live, path_of, post_scope, read_request

GATEWAY: Final = "burnish-gateway"
ATTEMPTS: Final = 3
"""How often a request is put to a version of which replicas die before they have answered anything."""


class EngineReplica:
    """One engine on one version of a model, its adapters beside it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: str, name: str, config: ServingConfig, adapters: Mapping[str, Adapter] = MappingProxyType({})
    ) -> None:
        self._engine = await start_engine(Path(model), name, config, adapters)

    async def answer(self, path: str, body: bytes) -> AsyncIterator[list[Message]]:
        """The answer to a request as ASGI messages, those together that are there together. It ends when nobody waits for it."""
        waiting: asyncio.Queue[Message | None] = asyncio.Queue()

        async def run() -> None:
            try:
                await self._engine.app(post_scope(path, len(body)), asked_once(body), waiting.put)
            finally:
                waiting.put_nowait(None)

        running = asyncio.ensure_future(run())
        try:
            ended = False
            while not ended:
                batch = [await waiting.get()]
                while not waiting.empty():
                    batch.append(waiting.get_nowait())
                ended = None in batch
                yield [message for message in batch if message is not None]
            await running
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):  # absent when the constructor raised
            self._engine.close()


class Router:
    """ASGI application that has a version answer: sticky per caller, put to another replica when one dies before it has said anything.

    books: where it is noted what came of copies that shadows got. answer_s: how long one of these may take.
    started: whether every model has been there.
    """

    def __init__(self, books: Books, answer_s: float) -> None:
        self.routes: Routes = {}
        self.started = False
        self._liveness = Liveness(self._lives)
        self._handles: dict[str, Any] = {}
        self._shadows = Shadows(self._copied, books.shadowed, answer_s)

    async def follow(self, routes: Routes) -> None:
        """Send callers this way from now on; what is being answered stays where it is."""
        missing = [name for name in versions_of(routes) if name not in self._handles]
        for name in missing:
            self._handles[name] = await asyncio.to_thread(serve.get_app_handle, app_name(name))
        self.routes = routes
        self._handles = {name: self._handles[name] for name in versions_of(routes)}
        self._liveness.forget_all_but(set(self._handles))

    def leave(self, version: str) -> None:
        """Send nobody to a version from now on but who asks for it."""
        self.routes = without(self.routes, [version])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        if path_of(scope) in PROBES:
            await answer(send, 200 if await self._is_well(path_of(scope)) else 503, b"")
            return
        request, record = await read_request(scope, receive), record_of(scope)
        if record.model not in names(self.routes):  # it left the deployment while the request was looked at
            raise Refused(404, "model", f"there is no model {record.model[:100]!r}", code="model_not_found", param="model")
        caller = record.key or str(request.get("user") or record.id)
        version = version_for(self.routes, record.model, caller)
        record.version = version
        model, handle = engine_name(self.routes, record.model, version), self._handles[version]
        handle = handle.options(stream=True, method_name="answer")
        path, heard = path_of(scope), Heard()
        shadows = shadows_for(self.routes, record.model, caller)
        for shadow in shadows:
            self._shadows.copy(shadow, path, request, record, heard)
        try:
            send = self._liveness.hearing(version, heard.before(send) if shadows else send)
            await self._answer(handle, path, json.dumps({**request, "model": model}).encode(), receive, send)
        finally:
            heard.end()

    async def _is_well(self, path: str) -> bool:
        """`/health`: every model has an engine that answers. `/ready`: the start is over, and an engine answers."""
        if path == READY and not self.started:
            return False
        lives = await asyncio.gather(*(self._answers(model, shares) for model, shares in self.routes.items()))
        return any(lives) if path == READY else bool(lives) and all(lives)

    async def _answers(self, model: str, shares: tuple[VersionShare, ...]) -> bool:
        """Whether any of the versions lives that callers of a model are sent to; where they are sent to none, any at all."""
        sent = [share for share in shares if share.weight] or shares
        return any(await asyncio.gather(*(self._liveness.lives(served_name(model, share.version)) for share in sent)))

    async def _lives(self, version: str) -> bool:
        for _ in range(ATTEMPTS):
            with suppress(KeyError, RayError, RayServeException):  # it left, or Serve picked a replica whose engine is gone
                await self._handles[version].options(method_name="check_health").remote()
                return True
        return False

    async def _copied(self, version: str, path: str, body: bytes) -> AsyncIterator[Message]:
        call = self._handles[version].options(stream=True, method_name="answer").remote(path, body)
        try:
            async for batch in call:
                for message in batch:
                    yield message
        finally:
            call.cancel()

    async def _answer(self, handle: Any, path: str, body: bytes, receive: Receive, send: Send) -> None:
        calls = list[Any]()
        ended = gone = False

        async def hang_up() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            calls[-1].cancel()

        watching = asyncio.ensure_future(hang_up())
        try:
            await self._attempt(handle, path, body, send, calls)
            ended = True
        except RequestCancelledError:
            if not gone:  # then nobody reads it
                raise
        finally:
            watching.cancel()
            if not ended:
                calls[-1].cancel()

    async def _attempt(self, handle: Any, path: str, body: bytes, send: Send, calls: list[Any]) -> None:
        """Put a request to a version until a replica has answered. What comes before the first word of an answer is held till then, for a
        stream begins while its request still waits. calls: where each call is noted before anything is waited for."""
        begun = False
        for attempt in range(ATTEMPTS):
            calls.append(handle.remote(path, body))
            held = list[Message]()
            try:
                async for batch in calls[-1]:
                    for message in batch:
                        if message["type"] == USAGE:
                            await send(message)
                            continue
                        held.append(message)
                        begun = begun or not (message["type"] == "http.response.start" or says_nothing(message.get("body", b"")))
                        if begun:
                            await _let_go(held, send)
                await _let_go(held, send)
                return
            except RayActorError:
                if begun or attempt == ATTEMPTS - 1:
                    raise
            except (BackPressureError, DeploymentUnavailableError):
                said = "as many requests wait for this model as may; come again"
                raise Refused(503, "full", said, code="overloaded", again_s=AGAIN_S) from None


async def _let_go(held: list[Message], send: Send) -> None:
    while held:
        await send(held.pop(0))


class CanaryJudges:
    """The judges of canaries, each an application of its own."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._timeouts_s: Mapping[str, float] = {}

    async def follow(self, timeouts_s: Mapping[str, float]) -> None:
        """Ask the judges of these canaries, by their served names, for so long at most."""
        for name in timeouts_s.keys() - self._handles.keys():
            self._handles[name] = await asyncio.to_thread(serve.get_app_handle, judge_name(name))
        self._handles = {name: self._handles[name] for name in timeouts_s}
        self._timeouts_s = timeouts_s

    async def ask(self, canary: str, exchange: JudgedAnswer) -> float:
        """The value of an exchange. Raises JudgeOutage where there is none."""
        try:
            async with asyncio.timeout(self._timeouts_s[canary]):
                value, why = await self._handles[canary].score.remote(exchange)
        except (KeyError, TimeoutError, RayError, RayServeException) as error:
            raise JudgeOutage(f"it did not answer ({type(error).__name__})") from None
        if value is None:
            raise JudgeOutage(str(why))
        return float(value)


@serve.ingress()
class Gateway:
    """The one that clients talk to."""

    def __init__(self, options: ServingConfig, rules: Rules) -> None:
        load_plugins(options.plugins)
        self._guard = Guard(rules.policy) if rules.policy is not None else None
        self._most, self._looks = most_under_way(options), options.max_concurrent  # of one engine
        self._judge_calls = options.max_judge_calls
        self._front = front_of(rules, options, self._most)
        self._router = Router(self._front.books, options.request_timeout_s)
        self._judges = CanaryJudges()
        desk = self._front.desk
        keep = desk.judged if desk is not None and desk.conversations else None
        self._watch = CanaryWatch(self._judges.ask, self._router.leave, self._front.books.metrics, keep)
        self._front.observers.append(self._watch.consider)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        router = self._router
        return chat_service(
            router,
            lambda: names(router.routes),
            self._front,
            self._guard,
            looks=self._looks,
            judge_calls=self._judge_calls,
            complete=lambda: router.started,
        )

    async def drain(self) -> int:
        """See `RequestAdmission.drain`."""
        return self._front.admission.drain()

    async def follow(self, routes: Routes, started: bool) -> Mapping[str, Judgement]:
        """See `Router.follow`; say where canaries stand. As much may be under way as all engines together answer, or have waiting.

        started: whether every model of the deployment has been there.
        """
        self._front.admission.most = self._most * max(1, engines_of(routes))
        on_trial = canaries(routes)
        await self._judges.follow({name: canary.judge.timeout_s for name, canary in on_trial.items()})
        self._watch.follow(on_trial)
        found = self._watch.judgements()
        await self._router.follow(without(routes, [name for name, one in found.items() if one.state == "rolled back"]))
        self._router.started = started
        return found
