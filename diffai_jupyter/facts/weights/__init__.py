"""What the weights of one side are good for."""
