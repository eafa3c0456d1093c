"""Limits of tenants, keys and personas: what a request may take before it is admitted, and gives back at its end."""

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
