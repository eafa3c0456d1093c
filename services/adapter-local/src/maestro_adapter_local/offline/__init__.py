"""The built-in offline model: deterministic answers without a network, a key or a language model."""
