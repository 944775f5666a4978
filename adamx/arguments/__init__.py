"""What stages and recipes are given: hyperparameters, signatures, and how they are printed."""
