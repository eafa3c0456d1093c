"""Who asks, and what they may: keys of tenants, tokens of an identity provider, scopes and restrictions.

A key is known by its SHA-256 digest only, and stands in no log and no error.
"""

from maestro_gateway.identity.caller import Caller, current_caller, enter_caller
from maestro_gateway.identity.keys import Keys, key_in
from maestro_gateway.identity.principal import Principal, admitted, current_principal, enter, permit

__all__ = [
    "Caller",
    "Keys",
    "Principal",
    "admitted",
    "current_caller",
    "current_principal",
    "enter",
    "enter_caller",
    "key_in",
    "permit",
]
