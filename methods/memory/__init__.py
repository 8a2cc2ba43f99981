"""The replay memory, and the check that no other training examples of past tasks are used."""
