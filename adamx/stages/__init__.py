"""The stages. Each implements one idea of a paper; :func:`adamx.chain` composes them."""

from adamx.stages import (
    averaging,
    bases,
    bias,
    bounds,
    clipping,
    curvature,
    decay,
    differences,
    distance,
    factored,
    kronecker,
    layerwise,
    matrices,
    momentum,
    norms,
    precision,
    ratios,
    rectification,
    second_moment,
    signs,
    steps,
    sums,
    two_rates,
)
from adamx.stages.averaging import *
from adamx.stages.bases import *
from adamx.stages.bias import *
from adamx.stages.bounds import *
from adamx.stages.clipping import *
from adamx.stages.curvature import *
from adamx.stages.decay import *
from adamx.stages.differences import *
from adamx.stages.distance import *
from adamx.stages.factored import *
from adamx.stages.kronecker import *
from adamx.stages.layerwise import *
from adamx.stages.matrices import *
from adamx.stages.momentum import *
from adamx.stages.norms import *
from adamx.stages.precision import *
from adamx.stages.ratios import *
from adamx.stages.rectification import *
from adamx.stages.second_moment import *
from adamx.stages.signs import *
from adamx.stages.steps import *
from adamx.stages.sums import *
from adamx.stages.two_rates import *

__all__: list[str] = []
__all__ += averaging.__all__
__all__ += bases.__all__
__all__ += bias.__all__
__all__ += bounds.__all__
__all__ += clipping.__all__
__all__ += curvature.__all__
__all__ += decay.__all__
__all__ += differences.__all__
__all__ += distance.__all__
__all__ += factored.__all__
__all__ += kronecker.__all__
__all__ += layerwise.__all__
__all__ += matrices.__all__
__all__ += momentum.__all__
__all__ += norms.__all__
__all__ += precision.__all__
__all__ += ratios.__all__
__all__ += rectification.__all__
__all__ += second_moment.__all__
__all__ += signs.__all__
__all__ += steps.__all__
__all__ += sums.__all__
__all__ += two_rates.__all__
