"""The oracles: eager (plain PyTorch), gates and circuits (NumPy)."""
