"""Polyfills: tools, and JSON that meets a schema, for models that have neither; `docs/polyfills.md` tells what they do.

`Polyfilled` wraps a provider. All else is pure: `plan` decides what a request needs made, `tools_prompt` rewrites the
request, `tools_parser` and `tools_answer` read the model's text, `json_schema` checks it, `repair` asks again.
"""

from maestro_sdk.adapter.polyfill.plan import Means, Plan
from maestro_sdk.adapter.polyfill.provider import Polyfilled
from maestro_sdk.adapter.polyfill.tools_parser import Parser
from maestro_sdk.adapter.polyfill.tools_prompt import to_prompted

__all__ = ["Means", "Parser", "Plan", "Polyfilled", "to_prompted"]
