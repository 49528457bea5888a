"""What is kept on the disk between runs: entries, how they are found again, and how they are written."""
