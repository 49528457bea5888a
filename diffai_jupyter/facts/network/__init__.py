"""What a network is built like, and what it takes to run it, from headers and configuration."""
