"""Finetuning: the network goes on with the new task as if there had been no others. The floor."""

from __future__ import annotations

from methods.single import SingleNet


class Finetune(SingleNet):
    """Plain SGD, task after task."""
