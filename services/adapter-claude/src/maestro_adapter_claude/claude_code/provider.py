"""Claude Code as a source of answers: one run of its command line per request, ended as soon as the answer is whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_claude.answer import Stream
from maestro_adapter_claude.claude_code import models
from maestro_adapter_claude.claude_code.failure import to_error
from maestro_adapter_claude.claude_code.models import PROVIDER
from maestro_adapter_claude.claude_code.request import PREFIX, SERVER, Run, to_wire
from maestro_adapter_claude.claude_code.transcript import session_file, to_transcript
from maestro_sdk.errors import MaestroError, NotFound, ProviderAuth, StreamBroken, Timeout, UpstreamError

if TYPE_CHECKING:
    from maestro_adapter_claude.models import ClaudeModel
    from maestro_adapter_claude.settings import ClaudeSettings

INSTALL = "Claude Code is not installed: pip install 'maestro-adapter-claude[claude-code]'"
# What a run may know of the adapter's own environment: no keys, no settings of another Claude Code.
_KEPT = frozenset(
    (
        *("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
        *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
    )
)
_QUIET: Mapping[str, str] = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
    "CLAUDE_CODE_MAX_RETRIES": "0",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_AUTO_COMPACT": "1",
    "DISABLE_COMPACT": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "MAX_MCP_OUTPUT_TOKENS": "1000000",
}
"""Retries, fallbacks and the like are the mesh's; what a tool said is never cut."""
_QUEUED = 64
_VERSION = "2.1.330"


def is_installed() -> bool:
    """Whether the extra `claude-code` is there."""
    return find_spec("claude_agent_sdk") is not None


class ClaudeCodeProvider:
    """Answers with runs of Claude Code, at most `max_processes` at once; the others wait."""

    name: str = "adapter-claude"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: ClaudeSettings, known: Mapping[str, ClaudeModel]) -> None:
        self._settings = settings
        self._models = models.load(settings.claude_code.models, known)
        self._places = asyncio.Semaphore(settings.claude_code.max_processes)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        found = self._models.get(request.model)
        if found is None:
            raise NotFound(f"{PROVIDER} has no model {request.model!r}; it has: {', '.join(self._models)}")
        run = to_wire(request, found)
        if reason := await self.check():
            raise ProviderAuth(reason, metadata={"provider": PROVIDER, "model": request.model})
        answer = Stream(run.outgoing)
        try:
            async with self._places, self._running(run) as messages:
                failed = _Failure()
                async for message in messages:
                    kind = type(message).__name__
                    if kind == "StreamEvent" and message.parent_tool_use_id is None:
                        if events := answer.take(message.event):
                            yield events
                        if answer.failure is not None:
                            raise answer.failure
                        if answer.finished:
                            return
                    elif kind in {"AssistantMessage", "ResultMessage"}:
                        failed.look(message)
                        if kind == "ResultMessage":
                            break
                raise failed.error()
        except MaestroError as error:
            error.metadata.setdefault("provider", PROVIDER)
            error.metadata.setdefault("model", request.model)
            raise

    async def models(self) -> Sequence[Model]:
        """The models that the settings name."""
        return [found.model for found in self._models.values()]

    async def check(self) -> str:
        """Whether Claude Code and a key are there."""
        if not is_installed():
            return INSTALL
        return "" if self._settings.api_key.get() else self._settings.missing_key()

    async def close(self) -> None:
        """Nothing stays open between runs."""

    @asynccontextmanager
    async def _running(self, run: Run) -> AsyncGenerator[AsyncIterator[Any]]:
        """The messages of a run. Leaving the context kills it: what it still has to say belongs to nobody."""
        # The first time it takes seconds; answers under way go on meanwhile.
        sdk: Any = await asyncio.to_thread(import_module, "claude_agent_sdk")
        with tempfile.TemporaryDirectory(prefix="maestro-claude-code-", ignore_cleanup_errors=True) as name:
            process = _Process(name, self._command_line(sdk))
            home = process.home
            done = asyncio.Event()
            queue: asyncio.Queue[Any] = asyncio.Queue(_QUEUED)
            options = self._options(sdk, run, home, process.start_file)
            pump = asyncio.create_task(_pump(sdk, run, options, done, queue))
            try:
                yield self._read(queue)
            finally:
                # The SDK closes politely and may take seconds, and not at all when it is cancelled meanwhile.
                process.kill()
                done.set()
                pump.cancel()
                with suppress(asyncio.CancelledError):
                    await pump

    async def _read(self, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        while True:
            try:
                # Not `wait_for`: it may swallow a cancellation that comes together with a message.
                async with asyncio.timeout(self._settings.read_timeout):
                    message = await queue.get()
            except TimeoutError as error:
                raise Timeout("Claude Code said nothing for too long") from error
            if message is None:
                return
            if isinstance(message, Exception):
                raise message
            yield message

    def _command_line(self, sdk: Any) -> str:
        given = self._settings.claude_code.cli_path
        bundled = Path(sdk.__file__).with_name("_bundled") / "claude"
        found = given or (str(bundled) if bundled.is_file() else shutil.which("claude"))
        if not found:
            raise UpstreamError("there is no command line of Claude Code: set claude_code.cli_path")
        return found

    def _options(self, sdk: Any, run: Run, home: Path, start_file: Path) -> Any:
        session = str(uuid.uuid4())
        transcript = to_transcript(run, session, home, _VERSION)
        if transcript:
            file = home / session_file(session, home)
            file.parent.mkdir(parents=True)
            file.write_bytes(transcript)
        pending = run.pending[0]["id"] if run.pending is not None else None

        async def decide(given: Any, tool_use_id: str | None, context: Any) -> dict[str, Any]:
            # The call whose result is known may go on and get it; all others end the run, for the caller to answer.
            decision = "allow" if pending is not None and tool_use_id == pending else "defer"
            return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": decision}}

        options: dict[str, Any] = {}
        if run.tools or run.pending is not None:
            server = {"type": "sdk", "name": SERVER, "instance": _tool_server(run)}
            options["mcp_servers"] = {SERVER: server}
        if run.effort:
            options["effort"] = run.effort
        if run.thinking is not None:
            options["thinking"] = dict(run.thinking)
        return sdk.ClaudeAgentOptions(
            model=run.outgoing.model,
            system_prompt=run.system,
            tools=[],
            strict_mcp_config=True,
            setting_sources=[],
            permission_mode="dontAsk",
            hooks={"PreToolUse": [sdk.HookMatcher(hooks=[decide])]},
            include_partial_messages=True,
            verbatim_prompts=True,
            max_turns=2,
            resume=session if transcript else None,
            cwd=str(home),
            cli_path=str(start_file),
            env=self._environment(run, home),
            **options,
        )

    def _environment(self, run: Run, home: Path) -> dict[str, str]:
        folder = str(home)
        limit = {} if run.max_tokens is None else {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(run.max_tokens)}
        return {
            # The SDK hands everything on that is not said anew.
            **{name: "" for name in os.environ if name not in _KEPT},
            **_QUIET,
            "ANTHROPIC_API_KEY": self._settings.api_key.get() or "",
            "ANTHROPIC_BASE_URL": self._settings.base_url,
            "CLAUDE_CONFIG_DIR": folder,
            "CLAUDE_CODE_TMPDIR": folder,
            "HOME": folder,
            "TMPDIR": folder,
            **limit,
        }


class _Failure:
    """Why a run ended without an answer."""

    def __init__(self) -> None:
        self._status: int | None = None
        self._kind = ""
        self._text = ""

    def look(self, message: Any) -> None:
        if type(message).__name__ == "AssistantMessage":
            self._kind = message.error or self._kind
            return
        if message.is_error:
            self._status = message.api_error_status
            self._text = message.result or "; ".join(message.errors or ())

    def error(self) -> MaestroError:
        if not self._text and not self._kind:
            return StreamBroken("the run of Claude Code ended without an answer")
        return to_error(self._status, self._kind, self._text)


class _Process:
    """The process of a run: started through a file that notes its number, so that it can be ended at any time."""

    def __init__(self, folder: str, command: str) -> None:
        # Claude Code knows its folder by the real path.
        self.home = Path(folder).resolve()
        self.start_file = self.home / "start"
        self._number_file = self.home / "pid"
        quoted = [text.replace("'", "'\\''") for text in (str(self._number_file), command)]
        self.start_file.write_text(f"#!/bin/sh\necho $$ > '{quoted[0]}'\nexec '{quoted[1]}' \"$@\"\n")
        self.start_file.chmod(stat.S_IRWXU)

    def kill(self) -> None:
        """Ends the process, when it runs."""
        with suppress(OSError, ValueError):
            number = int(self._number_file.read_text())
            if hasattr(os, "waitid"):
                # Raises when it is no child of ours any more: its number may be another process's by now.
                os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(number, signal.SIGKILL)


async def _pump(sdk: Any, run: Run, options: Any, done: asyncio.Event, queue: asyncio.Queue[Any]) -> None:
    """Puts the messages of a run into `queue`, then None, or the error that ended it."""

    async def prompt() -> AsyncIterator[dict[str, Any]]:
        if run.prompt:
            content = orjson.loads(orjson.dumps(run.prompt))
            message = {"role": "user", "content": content}
            yield {"type": "user", "session_id": "", "message": message, "parent_tool_use_id": None}
        # The run answers hooks and tools over the same line: it stays open.
        await done.wait()

    last: Any = None
    try:
        async with aclosing(sdk.query(prompt=prompt(), options=options)) as messages:
            async for message in messages:
                await queue.put(message)
    except sdk.ResultError as error:
        # The message before told the same, and more.
        last = to_error(error.api_error_status, "", error.result or "; ".join(error.errors))
    except Exception as error:  # noqa: BLE001 - whatever ends a run has to reach its caller, who would wait for ever
        last = UpstreamError(f"Claude Code: {error}", metadata={"provider": PROVIDER})
    await queue.put(last)


def _tool_server(run: Run) -> Any:
    """The tools as an MCP server within this process. Only the call that waits is ever let through."""
    server: Any = import_module("mcp.server")
    types: Any = import_module("mcp.types")
    pending = run.pending
    tools = [
        {"name": tool.name, "description": tool.description, "inputSchema": dict(tool.schema)} for tool in run.tools
    ]
    if pending is not None and pending[0]["name"] not in {PREFIX + tool.name for tool in run.tools}:
        # Its result is asked for, even where the caller offers it no more.
        name = str(pending[0]["name"]).removeprefix(PREFIX)
        tools.append({"name": name, "description": "", "inputSchema": {"type": "object"}})
    listed = types.ListToolsResult(tools=[types.Tool.model_validate(tool) for tool in tools])
    result: Mapping[str, Any] = pending[1] if pending is not None else {"is_error": True}
    answered = types.CallToolResult.model_validate(
        {"content": result.get("content", []), "isError": bool(result.get("is_error"))}
    )

    async def on_list_tools(context: Any, params: Any) -> Any:
        return listed

    async def on_call_tool(context: Any, params: Any) -> Any:
        return answered

    handlers: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
        "on_list_tools": on_list_tools,
        "on_call_tool": on_call_tool,
    }
    return server.Server(SERVER, version="1", **handlers)
