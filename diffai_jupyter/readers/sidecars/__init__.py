"""Side-cars: what lies beside the weights and says how they came about."""
