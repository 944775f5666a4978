"""What can be done with an optimiser that is a value."""
