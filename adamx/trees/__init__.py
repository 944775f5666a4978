"""Trees of parameters, independent of optimisers.

===============  ==================================================================================
``paths``        paths of arrays in their trees
``arrays``       what may be a parameter or a gradient, and how arrays are described
``align``        gradients beside their parameters, also where some gradients are missing
``differences``  descriptions of how two trees differ, for errors
``packed``       arrays in the form in which an axis packs them between steps
``steps``        ``apply_updates``
===============  ==================================================================================
"""
