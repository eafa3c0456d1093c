"""Route and dispatch: the router's table, the pure `plan` on it, and the `Dispatcher` that tries backends in order.

Used by the gateway and by trusted services that go without it ("proxyless").
"""
