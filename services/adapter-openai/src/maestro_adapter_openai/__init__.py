"""The adapter for OpenAI's models."""
