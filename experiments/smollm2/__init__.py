"""A real language model of 135 million parameters, and what is done with it."""
