"""Finetuning: training continues on the new task without regard to earlier ones. The usual lower bound."""

from __future__ import annotations

from methods.single import SingleNet


class Finetune(SingleNet):
    """Plain SGD, task after task."""
