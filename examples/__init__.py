"""Examples that run as programs, for instance `python -m examples.digits`."""
