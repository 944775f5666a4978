"""The experiments of "Adam: A Method for Stochastic Optimization", each with one command.

python -m examples.paper RUN [--quick | --full] [--out DIR]
"""
