"""What the tests of a mesh's own doors share."""

import inspect
from pathlib import Path

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart

KEY = "mk-peers-0123456789abcdef"
FIGURES: list[str] = []


def asked(model: str) -> ChatRequest:
    """A chat."""
    return ChatRequest(model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])])


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller."""
    return (("authorization", f"Bearer {key}"),)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture
def figures() -> list[str]:
    """Lines that are printed after the tests."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("peers")
        for line in FIGURES:
            terminalreporter.write_line(line)
