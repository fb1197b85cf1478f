"""Chat templates: rendering them as `transformers` does, and proving which characters the assistant wrote."""
