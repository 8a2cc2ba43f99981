"""Fuzzers. They take from minutes to hours and are not part of the test suite; what they found has tests there.

python -m tests.fuzz.mutations --cases 2000      damaged and hostile inputs of every kind
python -m tests.fuzz.torture kills --cases 100   runs that are killed, stopped, short of disk, or started twice
"""
