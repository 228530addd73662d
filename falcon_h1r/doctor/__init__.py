"""Is this allocation fit for the run? Short checks of what training stands on, each with its own deadline.

`suite` lists the checks and examines; `runner` carries one out on all ranks and survives one that fails or hangs;
every topic is a file of its own, whose functions take an `Examination` and return `Finding`s; `report` is the table.
"""
