"""What an optimizer saved: its groups, its moments, and whose they are."""
