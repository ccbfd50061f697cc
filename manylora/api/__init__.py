"""The HTTP face: OpenAI's fine-tuning API, and what the CLI needs beyond it."""
