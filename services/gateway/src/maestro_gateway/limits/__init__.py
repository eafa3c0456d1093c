"""Limits: what a request takes before it is admitted, what an attempt takes of a provider, and what they give back."""

from maestro_gateway.limits.headers import LimitHeaders, anthropic_headers, openai_headers
from maestro_gateway.limits.limiter import Limiter, limiting
from maestro_gateway.limits.ticket import Ticket, current_ticket, enter_ticket

__all__ = [
    "LimitHeaders",
    "Limiter",
    "Ticket",
    "anthropic_headers",
    "current_ticket",
    "enter_ticket",
    "limiting",
    "openai_headers",
]
