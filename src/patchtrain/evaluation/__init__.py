"""How good a model is: its loss on text, its answers to tasks, what it writes, and how fast."""
