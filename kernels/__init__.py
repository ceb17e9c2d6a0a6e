"""Triton kernels, installed as pyrevgrad.kernels; there are none in this version.

Imports without triton: a module that needs it is imported only when it is used.
"""
