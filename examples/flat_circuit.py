"""Flat backprop: L = sigmoid(w0·x0 + w1·x1 + w2), every gradient by hand, checked by nudging."""

from pyrevgrad.reference.circuits import flat_circuit


def nudged(w, x, i, step=1e-6):
    """Return the central difference of L in the i-th of (w0, w1, w2, x0, x1)."""
    low, high = [*w, *x], [*w, *x]
    low[i] -= step
    high[i] += step
    return (flat_circuit(high[:3], high[3:])[0] - flat_circuit(low[:3], low[3:])[0]) / (2 * step)


def main():
    w, x = [2.0, -3.0, -3.0], [-1.0, -2.0]
    value, (gradient_w, gradient_x) = flat_circuit(w, x)
    print(f"L = sigmoid({w[0]}·{x[0]} + {w[1]}·{x[1]} + {w[2]}) = {value:.6f}\n")
    print("input     value   dL/dinput by hand   by nudging")
    names = ("w0", "w1", "w2", "x0", "x1")
    by_hand = [*gradient_w, *gradient_x]
    for i, (name, at, gradient) in enumerate(zip(names, [*w, *x], by_hand, strict=True)):
        print(f"{name}      {at:8.2f}   {gradient:17.8f}   {nudged(w, x, i):10.8f}")


if __name__ == "__main__":
    main()
