"""Correct averages for their start at zero."""

from __future__ import annotations

from adamx.core import stage

__all__ = ["bias_correction"]


@stage(reach="element")
def bias_correction():
    r"""Divide the update by its bias.

    .. math::
        u \leftarrow u / \text{bias}

    An average that starts at zero is too small by the factor :math:`1 - \prod_i \beta_i`. Every
    averaging stage multiplies the bias by its factor. So this stage needs no arguments and may be
    anywhere after the averages. For Adam, the bias is :math:`(1-\beta_1^t)/\sqrt{1-\beta_2^t}`. The
    correction is exact for any schedule of β.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Section 3.

    Raises:
        StageError: if there is no averaging stage since the start of the chain or since the last
            correction.

    >>> opt = adamx.chain(adamx.scale_by_momentum(0.9), adamx.bias_correction())
    >>> opt.update(jnp.array([2.0]), opt.init(jnp.zeros(1)))[0]
    Array([2.], dtype=float32)
    """
    return lambda signal: signal.corrected()
