"""Anthropic's API in front of the mesh: its clients get the answer of any model in the shape that they know."""
