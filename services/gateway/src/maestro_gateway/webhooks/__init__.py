"""Events to the addresses of their tenants: signed, tried again, kept as dead letters when nobody takes them."""

from maestro_gateway.webhooks.office import Office, delivering

__all__ = ["Office", "delivering"]
