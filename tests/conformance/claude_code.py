"""Proves the Claude Code backend of adapter-claude: `make conformance-claude-code`.

It needs the extra `claude-code`, whose wheel has 380 MB, and so an environment of its own; what it does is what
`adapters.py` does for all others. Behind the command line stands a fault server on loopback.
"""

from __future__ import annotations

import asyncio
import sys

from adapters import Adapter, prove_adapter, show  # beside this file

from maestro_sdk.testing.obliging_anthropic import oblige_claude_code

CLAUDE_CODE = Adapter(
    "claude",
    ("claude-code/claude-sonnet-5",),
    oblige_claude_code,
    lambda url: {
        "base_url": url,
        "api_key": {"env": "CONFORMANCE_KEY"},
        "claude_code": {"enabled": True, "models": ["claude-sonnet-5"]},
    },
)


def main() -> int:
    """Prints the table and what is wrong."""
    reports = asyncio.run(prove_adapter(CLAUDE_CODE))
    show(reports)
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
