"""The suite `compile`: the tilings that the solver chooses for GPUs, held against the compiler."""
