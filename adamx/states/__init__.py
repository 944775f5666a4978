"""Read the state of a chain, wherever a training loop keeps it."""
