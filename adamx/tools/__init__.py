"""Tools that work with an optimiser as a value: configs, sweeps, checkpoints, conversion."""
