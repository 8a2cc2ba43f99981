"""Trunks for images: images [B, C, H, W] -> features [B, D].

Each file has one network. Heads are in net/multihead.py.
"""
