"""The trained model for other programs: GGUF files, and what each loader says to it."""
