"""What a run would cost on another machine: traces through the real placement policies and an event timeline.

``hardware`` and ``models`` are the inputs, ``cost`` the time of a piece of work, ``timeline`` the order of events,
``cells`` and ``validate`` the comparison with cells measured here, ``preset`` the paper's table, ``sensitivity``
what each input is worth.  Everything that comes out is of kind *projected*.
"""
