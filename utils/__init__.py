"""Helpers that every folder may use; nothing here imports from another folder of the project."""
