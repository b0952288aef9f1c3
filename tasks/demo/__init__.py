"""The demo domain: SQL completion over six small generated databases, with its models and its demo LLM server."""
