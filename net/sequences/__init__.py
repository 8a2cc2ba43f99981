"""Trunks for sequences of numbers or tokens [B, n] -> features [B, D]; each network has one file.

`handcrafted` has networks whose weights are written down, `published` the names that published files give to weights.
"""
