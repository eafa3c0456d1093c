"""Vectors of meaning without a server: a BERT encoder of MiniLM's size, run with numpy from files on this machine.

`safetensors.py` reads the weights, `wordpiece.py` the words, `encoder.py` is the network, `embedder.py` serves it. Only
the last one may be imported without numpy, which is an optional extra of this package.
"""
