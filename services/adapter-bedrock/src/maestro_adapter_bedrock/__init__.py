"""The adapter for the models of Amazon Bedrock."""
