"""Who asks, and what they may: keys of tenants, tokens of an identity provider, scopes and restrictions.

A key is known by its SHA-256 digest only, and stands in no log and no error.
"""

from maestro_gateway.identity.keys import Keys, key_in
from maestro_gateway.identity.principal import Principal, admitted, current_principal, enter, permit

__all__ = ["Keys", "Principal", "admitted", "current_principal", "enter", "key_in", "permit"]
