"""What every part needs and no part owns: nothing here imports datasets, net or methods."""
