"""The experiments of "Adam: A Method for Stochastic Optimization", one command each.

python -m examples.paper RUN [--quick | --full] [--out DIR]
"""
