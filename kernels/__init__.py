"""Triton kernels, installed as pyrevgrad.kernels: the operations of csrc/, one kernel each way.

Imports without triton: a module that needs it is imported only when it is used.
"""
