"""Proves that a server keeps the contract: any language, by its address alone.

    maestro conformance 127.0.0.1:50061 --report report.json
    pytest --pyargs maestro_sdk.conformance --maestro-target 127.0.0.1:50061

Core cases hold for every server and can't be left out. A feature that the model claims is proven, or fails; one that it
does not claim is listed. From Python: `report = await suite.prove("127.0.0.1:50061")`.

Of an adapter with a scripted server as its provider the other side is proven too, by `driving.drive`: what comes of
each thing that may happen on the provider's wire.
"""
