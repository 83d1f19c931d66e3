"""What every command needs to meet a terminal, a pipe or a service manager: arguments, streams, signals, errors.

Nothing heavy is imported here, nor by the modules: help must answer at once.
"""
