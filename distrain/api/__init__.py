"""The Python interface: trains, watches and uses runs from a notebook or a program, by the code of the command line.

`distrain` itself exports its names, and loads this package when one of them is first used.
"""
