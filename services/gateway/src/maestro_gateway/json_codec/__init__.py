"""The only place that knows JSON: bodies into messages of the contract, and messages into answers, events and frames.

document.py      bytes into an object: UTF-8, depth, doubled keys
decoder.py       objects into messages, compiled from the descriptors
chat_request.py  the shape of a chat request that people write by hand
answer.py        answers, server-sent events, WebSocket frames, errors
mesh.py          models, backends, decisions, health
event.py         lifecycle events
encoder.py       any message as plain data
"""
