"""Training examples of past tasks: which are kept, and a check that no others are used."""
