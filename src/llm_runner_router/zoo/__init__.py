"""The demonstration models that ship: GGUF files and `cards.json`. Data only, no code."""
