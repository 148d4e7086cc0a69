"""What a run would cost on another machine: traces replayed through the real placement policies, then simulated.

``hardware`` and ``models`` are the inputs, ``cost`` times a piece of work, ``simulation`` orders the work on a compute
and a link track, ``cells`` and ``validate`` compare with cells measured here, ``preset`` projects the paper's table
and ``grid`` its sweep of batch sizes, ``sensitivity`` varies the inputs.  Every output is of kind *projected*.
"""
