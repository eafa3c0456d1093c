"""What a request would cost at each backend that may answer it, as the contract has it. Pure."""

from __future__ import annotations

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.usage_pb2 import Cost
from maestro.usage.v1.usage_pb2 import CostEstimate, EstimateCostResponse
from maestro_gateway.budgets.quote import Quote, likely_at, size_of
from maestro_sdk.mesh.plan import Plan
from maestro_sdk.prices import format_usd


def estimates_of(plan: Plan, request: ChatRequest | EmbedRequest) -> EstimateCostResponse:
    """The estimates, in the order in which the backends of the plan would be tried."""
    size = size_of(request)
    answer = EstimateCostResponse()
    for ranked in plan.kept:
        backend = ranked.choice.backend
        least, most = likely_at(backend, size, backend.output_limit)
        longest = most.usage.output_tokens
        # Nobody knows how long an answer may be that neither the request nor the model bounds.
        bounded = size.answer is None or bool(longest)
        answer.estimates.append(
            CostEstimate(
                adapter=backend.adapter,
                provider=backend.provider,
                model=backend.message.model.name,
                input_tokens=least.usage.input_tokens,
                estimated=True,
                max_output_tokens=longest if bounded else None,
                minimum=_cost(least),
                maximum=_cost(most) if bounded else None,
            )
        )
    return answer


def _cost(quote: Quote) -> Cost | None:
    if quote.nano_usd is None:
        return None
    return Cost(usd=format_usd(quote.nano_usd), price_date=quote.price_date, estimated=True)
