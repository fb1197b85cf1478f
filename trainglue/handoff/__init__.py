"""A trained model in other hands: adapter, merged model, GGUF and Ollama."""
