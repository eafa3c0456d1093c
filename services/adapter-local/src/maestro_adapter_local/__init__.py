"""The adapter for OpenAI-compatible servers and the built-in offline model."""
