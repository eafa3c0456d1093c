"""The adapter for Gemini and the embedding models of Google's Vertex AI."""
