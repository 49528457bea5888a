"""What analyses declare and return, and what renderers draw. Types only."""
