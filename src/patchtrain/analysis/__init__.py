"""Reading a run's curves: what a person would want to be told about them."""
