"""From run directories: figures, tables, one HTML page."""
