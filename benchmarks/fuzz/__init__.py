"""Inputs damaged on purpose, given to every command: each must be answered, or refused in one sentence.

A case is made from its kind, a seed and its number alone, and runs in a process of its own through the command
line's main(): a crash, a hang or a blow-up of memory is counted, not suffered. `python -m benchmarks.fuzz` is the
long run, tests/test_fuzz.py a short one of the same cases.
"""
