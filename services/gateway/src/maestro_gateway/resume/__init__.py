"""Streamed chats that outlive the connections of their readers, and the gateways that began them."""
