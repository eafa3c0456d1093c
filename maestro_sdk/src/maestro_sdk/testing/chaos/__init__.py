"""Chaos: providers under weather, callers at every door, processes that are killed, and what holds all the same."""
