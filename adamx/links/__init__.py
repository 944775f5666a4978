"""What a chain is made of; :mod:`adamx.core` exports what authors of stages need.

=============  ====================================================================================
``signal``     the signal that a chain carries, for one array
``slots``      the arrays that stages keep for each parameter
``rule``       what a stage does to one array: rules, clocks, reach
``averages``   decaying averages and their total weights
``link``       a link of a chain; ``Around``, the contract of wrappers around links
``stage``      a stage with its arguments, as a pytree
``foreign``    any Optax transformation, as a link
``observer``   a link that reads the signals and changes nothing
``order``      the places at which stages may stand
``naming``     the names of links and arguments; the source code of a chain
=============  ====================================================================================
"""
