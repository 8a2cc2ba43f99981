"""Trunks for images: images [B, C, H, W] -> features [B, D]; each file has one network."""
