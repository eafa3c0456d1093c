"""`maestro chat`: one question, and the answer as it comes, by gRPC through the public port."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console as RichConsole
from rich.text import Text

from maestro.llm.v1 import chat_pb2
from maestro_sdk.cli.target import Target
from maestro_sdk.errors import MaestroError
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.types import RequestFields


def converse(target: Target, *, model: str, system: str, text: str) -> int:
    """Asks, prints the answer to standard output and what it took to standard error; returns the exit code."""
    printer = Printer(RichConsole(stderr=True, highlight=False, soft_wrap=True))
    fields = RequestFields(model=model)
    if system:
        fields["system"] = system
    try:
        asyncio.run(_converse(target, text, fields, printer))
    except (MaestroError, ValueError) as error:
        return printer.fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


async def _converse(target: Target, text: str, fields: RequestFields, printer: Printer) -> None:
    async with LLMClient(target.url, target.key) as client, client.stream(text, **fields) as stream:
        async for event in stream:
            printer.show(event)
    printer.end()


class Printer:
    """Prints events: the answer's text goes to standard output, everything about it to `side`."""

    def __init__(self, side: RichConsole) -> None:
        self._side = side
        self._backend = ""
        self._at_line_start = True
        self._finish: chat_pb2.Finish | None = None

    def show(self, event: chat_pb2.ChatEvent) -> None:
        """Prints one event."""
        match event.WhichOneof("kind"):
            case "started":
                self._backend = f"{event.started.provider}/{event.started.model}"
            case "text":
                self._write(event.text.text)
            case "reasoning" if self._side.is_terminal:
                self._side.print(Text(event.reasoning.text, "dim italic"), end="")
            case "tool_call":
                call = event.tool_call
                self._write(f"\n{call.name}: {call.arguments_json}" if call.name else call.arguments_json)
            case "part":
                self._write(event.part.refusal.text if event.part.HasField("refusal") else "")
            case "warning":
                self._side.print(Text(f"warning: {event.warning.message}", "yellow"))
            case "switched":
                switched = event.switched
                text = f"{switched.why}: {switched.to_model} goes on for {switched.from_model}"
                self._side.print(Text(text, "yellow"))
            case "finish":
                self._finish = event.finish
            case _:  # usage and provider state are of no use to a reader
                pass

    def end(self) -> None:
        """Prints what the answer took, once it is complete."""
        if not self._at_line_start:
            self._write("\n")
        if self._finish is not None and self._side.is_terminal:
            usage = self._finish.usage
            reason = chat_pb2.FinishReason.Name(self._finish.reason).removeprefix("FINISH_REASON_").lower()
            cost = f" · ${self._finish.cost.usd}" if self._finish.HasField("cost") else ""
            counts = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
            self._side.print(Text(f"{self._backend} · {counts}{cost} · {reason}", "dim"))

    def fail(self, error: MaestroError | ValueError) -> int:
        """Prints why there is no answer, or no whole one."""
        if not self._at_line_start:
            self._write("\n")
        self._side.print(Text.assemble((f"{getattr(error, 'reason', 'error')}: ", "bold red"), str(error)))
        return 1

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")
