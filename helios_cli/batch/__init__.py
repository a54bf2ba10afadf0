"""Several films of one command: what is asked for, the model they share, what is made beside each."""
