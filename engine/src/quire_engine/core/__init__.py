"""The scheduler's world: requests, sequences, blocks of KV cache, steps. Pure.

Imports the standard library only: no torch, no I/O, no clock, no logging. What happens is a function of
the calls made, so every situation can be built in a test. Read step.py, then scheduler.py.
"""
