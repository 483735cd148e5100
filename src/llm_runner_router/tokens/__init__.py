"""One tokenizer object for every kind of vocabulary: text to token ids and back, no weights."""
