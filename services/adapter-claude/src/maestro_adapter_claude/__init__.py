"""The adapter for Anthropic's Claude models."""
