"""GGUF files as the rest of the engine wants them: a container, and what it says of its model. No torch here."""
