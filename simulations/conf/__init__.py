"""What simulations are set up from: the casebook of syndromes, and the scenarios of a run."""
