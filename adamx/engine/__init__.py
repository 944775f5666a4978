"""Runs a row of links over trees of parameters: the only code that runs stages on trees.

===========  ======================================================================================
``program``  what a step is compiled for, and one step
``state``    the state before the first step
``row``      the signals of all parameters on their way along the links
``block``    consecutive stages, as one function of one array
``run``      how a block of stages runs on arrays: the one seam for other ways of execution
``kernels``  a block as a kernel that passes once over an array
``mosaic``   kernels for TPUs, in Pallas
``native``   kernels for CPUs, in C
``loops``    a jaxpr of a tile as loops in C
``results``  what a block computes of an array, and what it hands on
``gated``    the links inside of a gate
``kept``     the old slots of a stage, in steps that do not count
``parts``    a step outside ``jit`` on very many arrays, compiled in parts
``forms``    what a step must find in the state
===========  ======================================================================================
"""

from adamx.engine.program import Program, update
from adamx.engine.state import init

__all__ = ["Program", "init", "update"]
