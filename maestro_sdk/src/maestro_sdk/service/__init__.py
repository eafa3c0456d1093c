"""For authors of services: settings, server, interceptor, telemetry, events. The package imports none of them."""
