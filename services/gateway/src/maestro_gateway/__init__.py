"""The gateway: authenticates, admits, routes, dispatches and accounts every request."""
