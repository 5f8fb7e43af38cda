"""A run looked at while it trains: its state, the view in the terminal, the live page."""
