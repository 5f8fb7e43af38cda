"""Corpus to tokenizer to token store to the batches of a stage."""
