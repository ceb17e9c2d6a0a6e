"""A two-layer network in NumPy: 64 × 1000 -> 100 sigmoid -> 10, squared error, by hand.

`python examples/numpy_network.py [steps]` prints the loss of each step; 2000 steps unless told.
"""

import itertools
import sys

from pyrevgrad.reference.circuits import train_two_layer_network


def main(steps=2000):
    losses = train_two_layer_network(steps=steps)
    fell = sum(after < before for before, after in itertools.pairwise(losses))
    print(f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}", end="")
    print(f" and fell in {fell} of {len(losses) - 1} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
